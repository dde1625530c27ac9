import type { Call } from './call';
import { CALL_OPTIONS } from './call';
import { invalidType } from './errors';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import type { DetailedOperation, DetailedOperationSync, CallOptions } from './types';

/** Options of {@link matmul}. */
export interface MatmulOptions extends CallOptions {
  /** (batch,rows,depth); with `transposeA` (batch,depth,rows) */
  a: Float32Array;
  /** (batch,depth,columns); with `transposeB` (batch,columns,depth) */
  b: Float32Array;
  /** `batch` ≥ 0, default 1; `rows` ≥ 0; `columns` and `depth` ≥ 1. */
  shape: { batch?: number | undefined; rows: number; columns: number; depth: number };
  /** Whether `a` holds Aᵀ. Default false. */
  transposeA?: boolean | undefined;
  /** Whether `b` holds Bᵀ, as the weight (outputs,inputs) of a linear layer does. Default false. */
  transposeB?: boolean | undefined;
  /** Adds the product to what `out` holds, as the gradients of shared weights do. Default false. */
  accumulate?: boolean | undefined;
}

const operation: Operation = {
  name: 'matmul',
  native: 'matmul',
  options: [...CALL_OPTIONS, 'out', 'a', 'b', 'shape', 'transposeA', 'transposeB', 'accumulate'],
  shape: ['batch', 'rows', 'columns', 'depth'],
  prepare(call: Call): Prepared {
    const batch = call.dimension('batch', 0, 1);
    const rows = call.dimension('rows', 0);
    const columns = call.dimension('columns', 1);
    const depth = call.dimension('depth', 1);
    const transposeA = call.flag('transposeA', false);
    const transposeB = call.flag('transposeB', false);
    const accumulate = call.flag('accumulate', false);
    if (accumulate && !call.has('out')) {
      throw invalidType(
        'out',
        'a Float32Array or DeviceTensor to add to with accumulate',
        undefined,
      );
    }
    const a = call.floats('a', transposeA ? { batch, depth, rows } : { batch, rows, depth });
    const b = call.floats('b', transposeB ? { batch, columns, depth } : { batch, depth, columns });
    const output = call.output({ batch, rows, columns }, accumulate);
    const sizes = { batch, rows, columns, depth, transposeA, transposeB, accumulate };
    return { request: [sizes, { a, b, output }], result: () => call.deliver() };
  },
};

/**
 * Matrix products A·B of a batch: what a model needs around its attention (projections,
 * feed-forward layers and their gradients). float32, sums in blocks of 256 that are added in order.
 *
 * @returns (batch,rows,columns)
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in an input or, without an index, in the result or in what
 * was added to, ERR_OUT_OF_MEMORY.
 */
export const matmul: DetailedOperation<MatmulOptions, { output: Float32Array }> =
  asynchronous(operation);

/** {@link matmul} on the calling thread, which it blocks; borrows the inputs. */
export const matmulSync: DetailedOperationSync<MatmulOptions, { output: Float32Array }> =
  synchronous(operation);
