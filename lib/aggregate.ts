import { Reduce } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { asynchronous, synchronous } from './operation';
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

/** Options of {@link broadcast}. */
export interface BroadcastOptions extends CallOptions {
  /** (batch,C,dim) */
  inputs: Float32Array;
  /** (batch,length): values in 0…C−1, −1 for none */
  labels: Int32Array;
  shape: { batch: number; length: number; dim: number };
  /** C ≥ 1 */
  clusters: number;
  /** Says nothing here: the options of {@link aggregate} serve the way back too. */
  reduce?: 'mean' | 'sum' | undefined;
}

/** Options of {@link aggregate}. */
export interface AggregateOptions extends CallOptions {
  /** (batch,length,dim) */
  inputs: Float32Array;
  /** (batch,length): values in 0…C−1, −1 for none */
  labels: Int32Array;
  shape: { batch: number; length: number; dim: number };
  /** C ≥ 1 */
  clusters: number;
  /** Default 'mean'. */
  reduce?: 'mean' | 'sum' | undefined;
}

/** Gradients of {@link aggregate} and of {@link broadcast}. */
export interface AggregateGradients {
  /** In the shape of `inputs`. */
  inputs: Float32Array;
}

const OPTIONS = [
  ...CALL_OPTIONS,
  'out',
  'inputs',
  'labels',
  'shape',
  'clusters',
  'reduce',
] as const;
const SHAPE = ['batch', 'length', 'dim'] as const;

function readSizes(call: Call) {
  const batch = call.dimension('batch', 0);
  const length = call.dimension('length', 0);
  const dim = call.dimension('dim', 1);
  return { batch, length, dim, clusters: call.count('clusters') };
}

const readReduce = (call: Call) => call.choice('reduce', Reduce, Reduce.mean);

const aggregateOperation: DifferentiableOperation = {
  name: 'aggregate',
  native: 'aggregate',
  gradient: { native: 'aggregateGradient', options: ['inputs'] },
  options: OPTIONS,
  shape: SHAPE,
  prepare(call: Call): PreparedGradient {
    const sizes = readSizes(call);
    const { batch, length, dim, clusters } = sizes;
    const reduce = readReduce(call);
    const inputs = call.floats('inputs', { batch, length, dim });
    const labels = call.integers('labels', { batch, length });
    const output = call.output({ batch, clusters, dim });
    return {
      request: [sizes, { reduce, inputs, labels, output }],
      result: () => call.deliver(),
      saved: () => ({ ...sizes, reduce, labels }),
    };
  },
};

const broadcastOperation: DifferentiableOperation = {
  name: 'broadcast',
  native: 'broadcast',
  gradient: { native: 'broadcastGradient', options: ['inputs'] },
  options: OPTIONS,
  shape: SHAPE,
  prepare(call: Call): PreparedGradient {
    const sizes = readSizes(call);
    const { batch, length, dim, clusters } = sizes;
    readReduce(call);
    const inputs = call.floats('inputs', { batch, clusters, dim });
    const labels = call.integers('labels', { batch, length });
    const output = call.output({ batch, length, dim });
    return {
      request: [sizes, { inputs, labels, output }],
      result: () => call.deliver(),
      saved: () => ({ ...sizes, labels }),
    };
  },
};

/**
 * Mean or sum of the member rows of each cluster, added in index order; 0 for an empty cluster.
 *
 * @returns (batch,C,dim)
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options or labels,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY.
 */
export const aggregate: DetailedOperation<AggregateOptions, { output: Float32Array }> =
  asynchronous(aggregateOperation);

/** {@link aggregate} on the calling thread, which it blocks; borrows the inputs. */
export const aggregateSync: DetailedOperationSync<AggregateOptions, { output: Float32Array }> =
  synchronous(aggregateOperation);

/**
 * The row of each position's cluster: the inverse of {@link aggregate}. Label −1 gives zeros.
 *
 * @returns (batch,length,dim)
 * @throws as {@link aggregate}
 */
export const broadcast: DetailedOperation<BroadcastOptions, { output: Float32Array }> =
  asynchronous(broadcastOperation);

/** {@link broadcast} on the calling thread, which it blocks; borrows the inputs. */
export const broadcastSync: DetailedOperationSync<BroadcastOptions, { output: Float32Array }> =
  synchronous(broadcastOperation);

/** {@link aggregate} with its gradient. */
export const aggregateVjp =
  asynchronousVjp<VjpOperation<AggregateOptions, { output: Float32Array }, AggregateGradients>>(
    aggregateOperation,
  );

/** {@link aggregateVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const aggregateVjpSync =
  synchronousVjp<VjpOperationSync<AggregateOptions, { output: Float32Array }, AggregateGradients>>(
    aggregateOperation,
  );

/** {@link broadcast} with its gradient. */
export const broadcastVjp =
  asynchronousVjp<VjpOperation<BroadcastOptions, { output: Float32Array }, AggregateGradients>>(
    broadcastOperation,
  );

/** {@link broadcastVjp} on the calling thread; borrows the inputs until `dispose()`. */
export const broadcastVjpSync =
  synchronousVjp<VjpOperationSync<BroadcastOptions, { output: Float32Array }, AggregateGradients>>(
    broadcastOperation,
  );
