import { Reduce } from './binding';
import { CALL_OPTIONS, type Call } from './call';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import type { OutputOptions } from './types';

/** Options of {@link broadcast}. */
export interface BroadcastOptions extends OutputOptions {
  /** (batch,C,dim) */
  inputs: Float32Array;
  /** (batch,length): values in 0…C−1, −1 for none */
  labels: Int32Array;
  shape: { batch: number; length: number; dim: number };
  /** C ≥ 1 */
  clusters: number;
}

/** Options of {@link aggregate}. */
export interface AggregateOptions extends OutputOptions {
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

const OPTIONS = [...CALL_OPTIONS, 'out', 'inputs', 'labels', 'shape', 'clusters'] as const;
const SHAPE = ['batch', 'length', 'dim'] as const;

function readSizes(call: Call) {
  const batch = call.dimension('batch', 0);
  const length = call.dimension('length', 0);
  const dim = call.dimension('dim', 1);
  return { batch, length, dim, clusters: call.count('clusters') };
}

const aggregateOperation: Operation = {
  name: 'aggregate',
  native: 'aggregate',
  options: [...OPTIONS, 'reduce'],
  shape: SHAPE,
  prepare(call: Call): Prepared {
    const sizes = readSizes(call);
    const { batch, length, dim, clusters } = sizes;
    const reduce = call.choice('reduce', Reduce, Reduce.mean);
    const inputs = call.floats('inputs', { batch, length, dim });
    const labels = call.integers('labels', { batch, length });
    const output = call.output({ batch, clusters, dim });
    return { request: [sizes, { reduce, inputs, labels, output }], result: () => call.deliver() };
  },
};

const broadcastOperation: Operation = {
  name: 'broadcast',
  native: 'broadcast',
  options: OPTIONS,
  shape: SHAPE,
  prepare(call: Call): Prepared {
    const sizes = readSizes(call);
    const { batch, length, dim, clusters } = sizes;
    const inputs = call.floats('inputs', { batch, clusters, dim });
    const labels = call.integers('labels', { batch, length });
    const output = call.output({ batch, length, dim });
    return { request: [sizes, { inputs, labels, output }], result: () => call.deliver() };
  },
};

/**
 * Mean or sum of the member rows of each cluster, added in index order; 0 for an empty cluster.
 *
 * @returns (batch,C,dim)
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options or labels,
 * ERR_NON_FINITE for a NaN or an infinity in a row that is read, ERR_OUT_OF_MEMORY.
 */
export const aggregate =
  asynchronous<(options: AggregateOptions) => Promise<Float32Array>>(aggregateOperation);

/** {@link aggregate} on the calling thread, which it blocks; borrows the inputs. */
export const aggregateSync =
  synchronous<(options: AggregateOptions) => Float32Array>(aggregateOperation);

/**
 * The row of each position's cluster: the inverse of {@link aggregate}. Label −1 gives zeros.
 *
 * @returns (batch,length,dim)
 * @throws as {@link aggregate}
 */
export const broadcast =
  asynchronous<(options: BroadcastOptions) => Promise<Float32Array>>(broadcastOperation);

/** {@link broadcast} on the calling thread, which it blocks; borrows the inputs. */
export const broadcastSync =
  synchronous<(options: BroadcastOptions) => Float32Array>(broadcastOperation);
