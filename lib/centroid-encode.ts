import { PoolStart } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { readCentroidWeighting, type CentroidWeighting } from './centroid-weighting';
import { outOfRange } from './errors';
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

/** Options of {@link centroidEncode}. */
export interface CentroidEncodeOptions extends CallOptions, CentroidWeighting {
  /** (batch,length,dim) */
  inputs: Float32Array;
  shape: { batch: number; length: number; dim: number; heads: number; headDim: number };
  /** M ≥ 1; at most `length`, unless `initial` is given as an array. */
  centroids: number;
  /**
   * First centroids: means of equal stretches ('stride', default), a random sample, the rows
   * farthest from each other, or (batch,M,dim) given.
   */
  initial?: 'stride' | 'sample' | 'farthest' | Float32Array | undefined;
  /** (heads·headDim,dim) */
  queryWeight: Float32Array;
  /** (heads·headDim,dim) */
  keyWeight: Float32Array;
  /** (heads·headDim,dim) */
  valueWeight: Float32Array;
  /** (dim,heads·headDim) */
  outputWeight: Float32Array;
  /** T. Default 1. */
  steps?: number | undefined;
  /** ε. Default 1. */
  stepSize?: number | undefined;
  /** τ. Default 1/√headDim. */
  scale?: number | undefined;
  /** Of 'sample'; a safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
}

/** Gradients of {@link centroidEncode}. */
export interface CentroidEncodeGradients {
  /** (batch,length,dim), through the steps and the start */
  inputs: Float32Array;
  /** (batch,M,dim), when `initial` was given as an array */
  initial?: Float32Array;
  /** (heads·headDim,dim) */
  queryWeight: Float32Array;
  /** (heads·headDim,dim) */
  keyWeight: Float32Array;
  /** (heads·headDim,dim) */
  valueWeight: Float32Array;
  /** (dim,heads·headDim) */
  outputWeight: Float32Array;
}

const { stride, sample, farthest, given } = PoolStart;
const STARTS = { stride, sample, farthest };

const operation: DifferentiableOperation = {
  name: 'centroidEncode',
  native: 'centroidEncode',
  gradient: {
    native: 'centroidEncodeGradient',
    options: ['inputs', 'initial', 'queryWeight', 'keyWeight', 'valueWeight', 'outputWeight'],
  },
  options: [
    ...CALL_OPTIONS,
    'out',
    'inputs',
    'shape',
    'centroids',
    'initial',
    'queryWeight',
    'keyWeight',
    'valueWeight',
    'outputWeight',
    'steps',
    'stepSize',
    'scale',
    'normalize',
    'aggregate',
    'weights',
    'neighbors',
    'neighborCount',
    'seed',
  ],
  shape: ['batch', 'length', 'dim', 'heads', 'headDim'],
  prepare(call: Call): PreparedGradient {
    const batch = call.dimension('batch', 0);
    const length = call.dimension('length', 0);
    const dim = call.dimension('dim', 1);
    const heads = call.dimension('heads', 1);
    const headDim = call.dimension('headDim', 1);
    const centroids = call.count('centroids');
    const steps = call.iterations('steps', 1);
    const stepSize = call.real('stepSize', 1);
    const scale = call.real('scale', 1 / Math.sqrt(headDim));
    const seed = call.seed();
    const inputs = call.floats('inputs', { batch, length, dim });
    const start = readStart(call, STARTS, stride, given, { batch, centroids, dim });
    if (centroids > length && start.initial === undefined) {
      throw outOfRange('centroids', `at most length (${length}) without initial`, centroids);
    }
    const queryWeight = call.floats('queryWeight', { heads, headDim, dim });
    const keyWeight = call.floats('keyWeight', { heads, headDim, dim });
    const valueWeight = call.floats('valueWeight', { heads, headDim, dim });
    const outputWeight = call.floats('outputWeight', { dim, heads, headDim });
    const weighting = readCentroidWeighting(call, batch, centroids, length, undefined);
    const output = call.output({ batch, centroids, dim });
    const sizes = { batch, length, dim, heads, headDim, centroids, steps, stepSize, scale, seed };
    const projections = { queryWeight, keyWeight, valueWeight, outputWeight };
    return {
      request: [sizes, start, projections, weighting, { inputs, output }],
      result: () => call.deliver(),
      saved: () => ({ ...sizes, ...start, ...projections, ...weighting, inputs }),
    };
  },
};

/**
 * The learned layer of centroid attention, amortised clustering (Wu, Liu, Liu, "Centroid
 * Transformers", 2021, section 3): T shared steps of
 * u ← u + ε W_o concat_l(aggregate_i a_lji (W_v x_i)_l) with q = W_q u and k = W_k x.
 *
 * @returns (batch,M,dim)
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY,
 * ERR_CUDA_UNAVAILABLE.
 */
export const centroidEncode: DetailedOperation<CentroidEncodeOptions, { output: Float32Array }> =
  asynchronous(operation);

/** {@link centroidEncode} on the calling thread, which it blocks; borrows the inputs. */
export const centroidEncodeSync: DetailedOperationSync<
  CentroidEncodeOptions,
  { output: Float32Array }
> = synchronous(operation);

/** {@link centroidEncode} with its gradients, through all steps. */
export const centroidEncodeVjp =
  asynchronousVjp<
    VjpOperation<CentroidEncodeOptions, { output: Float32Array }, CentroidEncodeGradients>
  >(operation);

/** {@link centroidEncodeVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const centroidEncodeVjpSync =
  synchronousVjp<
    VjpOperationSync<CentroidEncodeOptions, { output: Float32Array }, CentroidEncodeGradients>
  >(operation);
