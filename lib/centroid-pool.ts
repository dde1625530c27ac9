import { PoolStart, Similarity } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { asynchronous, synchronous } from './operation';
import { readStart } from './start';
import type {
  DetailedOperation,
  DetailedOperationSync,
  CallOptions,
  VjpOperation,
  VjpOperationSync,
} from './types';
import {
  asynchronousVjp,
  synchronousVjp,
  type DifferentiableOperation,
  type PreparedGradient,
} from './vjp';

/** Options of {@link centroidPool}. */
export interface CentroidPoolOptions extends CallOptions {
  /** (batch,length,dim) */
  inputs: Float32Array;
  shape: { batch: number; length: number; dim: number };
  /** M ≥ 1; rows past the real length of a sequence are 0. */
  centroids: number;
  /** Steps. Default 8. */
  iterations?: number | undefined;
  /** Default 'cosine'; 'euclidean' is −½ the squared distance. */
  similarity?: 'cosine' | 'dot' | 'euclidean' | undefined;
  /** ≥ 0; 0 is a hard assignment. Default 0.1 for 'cosine', otherwise 1. */
  temperature?: number | undefined;
  /**
   * First centroids: means of equal stretches ('stride', default), k-means++, the rows farthest
   * from each other, or (batch,M,dim) given.
   */
  initial?: 'stride' | 'kmeans++' | 'farthest' | Float32Array | undefined;
  /** Of 'kmeans++'; a safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
  /** (batch): how many leading rows are real. Default all. */
  lengths?: Int32Array | undefined;
}

/** What {@link centroidPool} returns with `details: true`. */
export interface CentroidPoolDetails {
  /** (batch,M,dim) */
  output: Float32Array;
  /** (batch,length): nearest centroid of each row, −1 for padding */
  labels: Int32Array;
  /** (batch,M): summed weights of the rows of each centroid */
  masses: Float32Array;
}

/** Gradients of {@link centroidPool}. */
export interface CentroidPoolGradients {
  /** (batch,length,dim), through the steps and the start */
  inputs: Float32Array;
  /** (batch,M,dim), when `initial` was given as an array */
  initial?: Float32Array;
}

const { stride, farthest, given } = PoolStart;
const STARTS = { stride, 'kmeans++': PoolStart['kmeans++'], farthest };

const operation: DifferentiableOperation = {
  name: 'centroidPool',
  native: 'centroidPool',
  gradient: { native: 'centroidPoolGradient', options: ['inputs', 'initial'] },
  options: [
    ...CALL_OPTIONS,
    'out',
    'inputs',
    'shape',
    'centroids',
    'iterations',
    'similarity',
    'temperature',
    'initial',
    'seed',
    'lengths',
  ],
  shape: ['batch', 'length', 'dim'],
  prepare(call: Call): PreparedGradient {
    const batch = call.dimension('batch', 0);
    const length = call.dimension('length', 0);
    const dim = call.dimension('dim', 1);
    const centroids = call.count('centroids');
    const iterations = call.iterations('iterations', 8);
    const similarity = call.choice('similarity', Similarity, Similarity.cosine);
    const asked = call.real('temperature', similarity === Similarity.cosine ? 0.1 : 1, 0);
    // So cold that its reciprocal, times log2(e), leaves float32: the limit, a hard assignment.
    const temperature = Number.isFinite(Math.fround(Math.LOG2E / asked)) ? asked : 0;
    const seed = call.seed();
    const inputs = call.floats('inputs', { batch, length, dim });
    const lengths = call.lengths('lengths', { batch }, length);
    const start = readStart(call, STARTS, stride, given, { batch, centroids, dim });
    const { details } = call;
    const output = call.output({ batch, centroids, dim });
    const sizes = { batch, length, dim, centroids, iterations, similarity, temperature, seed };
    const known = details && {
      labels: call.result('Int32Array', 'labels', { batch, length }),
      masses: call.result('Float32Array', 'masses', { batch, centroids }),
    };
    return {
      request: [sizes, start, { inputs, lengths, output }, { ...known }],
      result: () => (known ? { output: call.deliver(), ...known } : call.deliver()),
      saved: () => ({ ...sizes, ...start, inputs, lengths }),
    };
  },
};

/**
 * Pools N vectors into M without learned weights, by the iteration of centroid attention (Wu, Liu,
 * Liu, "Centroid Transformers", 2021, section 3): each centroid moves to the mean of all rows,
 * weighted by softmax over the centroids of similarity/temperature. Turns many token vectors into
 * a few for multi-vector retrieval.
 *
 * @returns (batch,M,dim), not normalised to unit length; with `details: true` also `labels` and
 * `masses`.
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY,
 * ERR_CUDA_UNAVAILABLE.
 */
export const centroidPool =
  asynchronous<DetailedOperation<CentroidPoolOptions, CentroidPoolDetails>>(operation);

/** {@link centroidPool} on the calling thread, which it blocks; borrows the inputs. */
export const centroidPoolSync =
  synchronous<DetailedOperationSync<CentroidPoolOptions, CentroidPoolDetails>>(operation);

/**
 * {@link centroidPool} with its gradients, through all steps; the rows that a start picks are
 * constants, and so are the labels of a hard assignment.
 */
export const centroidPoolVjp =
  asynchronousVjp<VjpOperation<CentroidPoolOptions, CentroidPoolDetails, CentroidPoolGradients>>(
    operation,
  );

/** {@link centroidPoolVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const centroidPoolVjpSync =
  synchronousVjp<VjpOperationSync<CentroidPoolOptions, CentroidPoolDetails, CentroidPoolGradients>>(
    operation,
  );
