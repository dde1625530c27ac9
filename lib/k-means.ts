import { KMeansStart, Metric } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import { readStart } from './start';
import type { AsyncOperation, CommonOptions, SyncOperation } from './types';

/** Options of {@link kMeans}. */
export interface KMeansOptions extends CommonOptions {
  /** (batch,length,dim) */
  inputs: Float32Array;
  shape: { batch: number; length: number; dim: number };
  /** C ≥ 1; clusters past the real length of a sequence stay empty. */
  clusters: number;
  /** Most updates of the centroids. Default 300. */
  iterations?: number | undefined;
  /**
   * ≥ 0: stops when the centroids' summed squared movement is at most this times the mean variance
   * of the columns. Default 1e-4.
   */
  tolerance?: number | undefined;
  /** Of the first centroids; a safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
  /** First centroids: k-means++ (default), a random sample of rows, or (batch,C,dim) given. */
  initial?: 'kmeans++' | 'sample' | Float32Array | undefined;
  /** 'cosine' clusters the rows normalised to unit length. Default 'euclidean'. */
  metric?: 'euclidean' | 'cosine' | undefined;
  /** (batch): how many leading rows are real. Default all. */
  lengths?: Int32Array | undefined;
}

/** What {@link kMeans} returns. */
export interface KMeansResult {
  /** (batch,C,dim) */
  centroids: Float32Array;
  /** (batch,length): nearest centroid (tie: lowest), −1 for padding */
  labels: Int32Array;
  /** (batch,C) */
  counts: Int32Array;
  /** (batch): sum of the squared distances, or of 1 − cos, to the nearest centroid */
  inertia: Float64Array;
  /**
   * (batch): updates that were made; scikit-learn's `n_iter_` also counts the last one where it
   * changes no label
   */
  iterations: Int32Array;
}

const { sample, given } = KMeansStart;
const plusPlus = KMeansStart['kmeans++'];
const STARTS = { 'kmeans++': plusPlus, sample };

const operation: Operation = {
  name: 'kMeans',
  native: 'kMeans',
  options: [
    ...CALL_OPTIONS,
    'inputs',
    'shape',
    'clusters',
    'iterations',
    'tolerance',
    'seed',
    'initial',
    'metric',
    'lengths',
  ],
  shape: ['batch', 'length', 'dim'],
  prepare(call: Call): Prepared {
    const batch = call.dimension('batch', 0);
    const length = call.dimension('length', 0);
    const dim = call.dimension('dim', 1);
    const clusters = call.count('clusters');
    const maxIterations = call.iterations('iterations', 300);
    const tolerance = call.real('tolerance', 1e-4, 0);
    const seed = call.seed();
    const metric = call.choice('metric', Metric, Metric.euclidean);
    const inputs = call.floats('inputs', { batch, length, dim });
    const start = readStart(call, STARTS, plusPlus, given, { batch, clusters, dim });
    const lengths = call.lengths('lengths', { batch }, length);
    const result = {
      centroids: call.result('Float32Array', 'centroids', { batch, clusters, dim }),
      labels: call.result('Int32Array', 'labels', { batch, length }),
      counts: call.result('Int32Array', 'counts', { batch, clusters }),
      inertia: call.result('Float64Array', 'inertia', { batch }),
      iterations: call.result('Int32Array', 'iterations', { batch }),
    };
    const sizes = { batch, length, dim, clusters, maxIterations, tolerance, seed, metric };
    return { request: [sizes, start, { inputs, lengths }, result], result: () => result };
  },
};

/**
 * Lloyd's K-means, batched; iterations, tolerance and inertia as in scikit-learn. An empty cluster
 * keeps its centroid.
 *
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY.
 */
export const kMeans = asynchronous<AsyncOperation<KMeansOptions, KMeansResult>>(operation);

/** {@link kMeans} on the calling thread, which it blocks; borrows the inputs. */
export const kMeansSync = synchronous<SyncOperation<KMeansOptions, KMeansResult>>(operation);
