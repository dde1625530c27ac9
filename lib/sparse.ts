import { ATTENTION_SHAPE, inLayout } from './attention-inputs';
import { Layout } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { invalidType } from './errors';
import { asynchronous, synchronous } from './operation';
import type {
  DetailedOperation,
  DetailedOperationSync,
  CallOptions,
  TensorLayout,
  VjpOperation,
  VjpOperationSync,
} from './types';
import {
  asynchronousVjp,
  synchronousVjp,
  type DifferentiableOperation,
  type PreparedGradient,
} from './vjp';

/** Options of both sparse products. */
export interface SparseOptions extends CallOptions {
  /** (B,H,L,k): keys of each query, or with `labels` (B,H,C,k): of each cluster; −1 is none. */
  indices: Int32Array;
  /** k ≥ 1: width of the lists; may exceed the key length. */
  k: number;
  /** (B,H,L): cluster of each query, −1 for none; needs `clusters`. */
  labels?: Int32Array | undefined;
  /** C; needs `labels`. */
  clusters?: number | undefined;
  /** Of query, key, value and the weighted sum. Default 'BHLD'. */
  layout?: TensorLayout | undefined;
  /** (B): how many leading queries are real. Default all. */
  queryLengths?: Int32Array | undefined;
  /** (B): how many leading keys are real; an index past them counts as −1. Default all. */
  keyLengths?: Int32Array | undefined;
}

/** Options of {@link sparseDot}. */
export interface SparseDotOptions extends SparseOptions {
  /** (B,H,L,D) */
  query: Float32Array;
  /** (B,H,S,D) */
  key: Float32Array;
  /** `keyLength` defaults to `queryLength`. */
  shape: {
    batch: number;
    heads: number;
    queryLength: number;
    keyLength?: number | undefined;
    headDim: number;
    valueDim?: number | undefined;
  };
}

/** Options of {@link sparseWeightedSum}. */
export interface SparseWeightedSumOptions extends SparseOptions {
  /** (B,H,L,k) */
  weights: Float32Array;
  /** (B,H,S,E) */
  value: Float32Array;
  /** `keyLength` defaults to `queryLength`, `valueDim` to `headDim`. */
  shape: {
    batch: number;
    heads: number;
    queryLength: number;
    keyLength?: number | undefined;
    headDim?: number | undefined;
    valueDim?: number | undefined;
  };
}

/** Gradients of {@link sparseDot}, in the layout of the call. */
export interface SparseDotGradients {
  /** (B,H,L,D) */
  query: Float32Array;
  /** (B,H,S,D) */
  key: Float32Array;
}

/** Gradients of {@link sparseWeightedSum}. */
export interface SparseWeightedSumGradients {
  /** (B,H,L,k), 0 where an index is −1 */
  weights: Float32Array;
  /** (B,H,S,E) in the layout of the call */
  value: Float32Array;
}

const OPTIONS = [
  ...CALL_OPTIONS,
  'out',
  'indices',
  'k',
  'labels',
  'clusters',
  'shape',
  'layout',
  'queryLengths',
  'keyLengths',
] as const;

function readSizes(call: Call) {
  const batch = call.dimension('batch', 0);
  const heads = call.dimension('heads', 1);
  const queryLength = call.dimension('queryLength', 0);
  const keyLength = call.dimension('keyLength', 0, queryLength);
  const layout = call.choice('layout', Layout, Layout.BHLD);
  const k = call.count('k');
  return { batch, heads, queryLength, keyLength, layout, k };
}

/** Where the keys of a query are listed, and which rows are real. */
function readLists(call: Call, sizes: ReturnType<typeof readSizes>) {
  const { batch, heads, queryLength, keyLength, k } = sizes;
  const queryLengths = call.lengths('queryLengths', { batch }, queryLength);
  const keyLengths = call.lengths('keyLengths', { batch }, keyLength);
  if (!call.has('labels') && !call.has('clusters')) {
    const indices = call.integers('indices', { batch, heads, queryLength, k });
    return { clusters: 0, indices, queryLengths, keyLengths };
  }
  if (!call.has('clusters')) throw invalidType('clusters', 'an integer with labels', undefined);
  const clusters = call.count('clusters');
  const labels = call.integers('labels', { batch, heads, queryLength });
  const indices = call.integers('indices', { batch, heads, clusters, k });
  return { clusters, labels, indices, queryLengths, keyLengths };
}

const dotOperation: DifferentiableOperation = {
  name: 'sparseDot',
  native: 'sparseDot',
  gradient: { native: 'sparseDotGradient', options: ['query', 'key'] },
  options: [...OPTIONS, 'query', 'key'],
  shape: ATTENTION_SHAPE,
  prepare(call: Call): PreparedGradient {
    const sizes = readSizes(call);
    const { batch, heads, queryLength, keyLength, layout, k } = sizes;
    const headDim = call.dimension('headDim', 1);
    const query = call.floats('query', inLayout(layout, { batch, heads, queryLength, headDim }));
    const key = call.floats('key', inLayout(layout, { batch, heads, keyLength, headDim }));
    const lists = readLists(call, sizes);
    const output = call.output({ batch, heads, queryLength, k });
    return {
      request: [sizes, lists, { headDim, query, key, output }],
      result: () => call.deliver(),
      saved: () => ({ ...sizes, ...lists, headDim, query, key }),
    };
  },
};

const sumOperation: DifferentiableOperation = {
  name: 'sparseWeightedSum',
  native: 'sparseWeightedSum',
  gradient: { native: 'sparseWeightedSumGradient', options: ['weights', 'value'] },
  options: [...OPTIONS, 'weights', 'value'],
  shape: ATTENTION_SHAPE,
  prepare(call: Call): PreparedGradient {
    const sizes = readSizes(call);
    const { batch, heads, queryLength, keyLength, layout, k } = sizes;
    const headDim = call.dimension('headDim', 1, 0);
    const valueDim = call.dimension('valueDim', 1, headDim > 0 ? headDim : undefined);
    const weights = call.floats('weights', { batch, heads, queryLength, k });
    const value = call.floats('value', inLayout(layout, { batch, heads, keyLength, valueDim }));
    const lists = readLists(call, sizes);
    const output = call.output(inLayout(layout, { batch, heads, queryLength, valueDim }));
    return {
      request: [sizes, lists, { valueDim, weights, value, output }],
      result: () => call.deliver(),
      saved: () => ({ ...sizes, ...lists, valueDim, weights, value }),
    };
  },
};

/**
 * Products of each query with its listed keys only (Vyas, Katharopoulos, Fleuret, 2020, section
 * 3.3): q·k without a scale.
 *
 * @returns (B,H,L,k); −Infinity for index −1
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options, indices or
 * labels, ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY.
 */
export const sparseDot: DetailedOperation<SparseDotOptions, { output: Float32Array }> =
  asynchronous(dotOperation);

/** {@link sparseDot} on the calling thread, which it blocks; borrows the inputs. */
export const sparseDotSync: DetailedOperationSync<SparseDotOptions, { output: Float32Array }> =
  synchronous(dotOperation);

/**
 * Sum of the listed values of each query, each times its weight: the second product of sparse
 * attention. Index −1 contributes nothing.
 *
 * @returns (B,H,L,E) in `layout`
 * @throws as {@link sparseDot}
 */
export const sparseWeightedSum: DetailedOperation<
  SparseWeightedSumOptions,
  { output: Float32Array }
> = asynchronous(sumOperation);

/** {@link sparseWeightedSum} on the calling thread, which it blocks; borrows the inputs. */
export const sparseWeightedSumSync: DetailedOperationSync<
  SparseWeightedSumOptions,
  { output: Float32Array }
> = synchronous(sumOperation);

/** {@link sparseDot} with its gradients: gradOutput is not read where an index is −1. */
export const sparseDotVjp =
  asynchronousVjp<VjpOperation<SparseDotOptions, { output: Float32Array }, SparseDotGradients>>(
    dotOperation,
  );

/** {@link sparseDotVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const sparseDotVjpSync =
  synchronousVjp<VjpOperationSync<SparseDotOptions, { output: Float32Array }, SparseDotGradients>>(
    dotOperation,
  );

/** {@link sparseWeightedSum} with its gradients. */
export const sparseWeightedSumVjp =
  asynchronousVjp<
    VjpOperation<SparseWeightedSumOptions, { output: Float32Array }, SparseWeightedSumGradients>
  >(sumOperation);

/** {@link sparseWeightedSumVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const sparseWeightedSumVjpSync =
  synchronousVjp<
    VjpOperationSync<SparseWeightedSumOptions, { output: Float32Array }, SparseWeightedSumGradients>
  >(sumOperation);
