import { CALL_OPTIONS, type Call } from './call';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import { MAXIMUM_DIMENSION } from './options';
import type { AsyncOperation, CommonOptions, SyncOperation } from './types';

/** Options of {@link topK}. */
export interface TopKOptions extends CommonOptions {
  /** (rows,columns) */
  scores: Float32Array;
  shape: { rows: number; columns: number };
  /** k ≥ 1; clamped to `columns`. */
  k: number;
  /** (rows): how many leading columns of each row are real. Default all. */
  lengths?: Int32Array | undefined;
}

/** What {@link topK} returns. */
export interface TopKResult {
  /** (rows,k): best first, −Infinity where a row has fewer columns */
  values: Float32Array;
  /** (rows,k): columns of the values, −1 likewise */
  indices: Int32Array;
}

const operation: Operation = {
  name: 'topK',
  native: 'topK',
  options: [...CALL_OPTIONS, 'scores', 'shape', 'k', 'lengths'],
  shape: ['rows', 'columns'],
  prepare(call: Call): Prepared {
    const rows = call.dimension('rows', 0);
    const columns = call.dimension('columns', 0);
    const k = Math.min(call.integer('k', 1, MAXIMUM_DIMENSION), columns);
    const scores = call.floats('scores', { rows, columns });
    const lengths = call.lengths('lengths', { rows }, columns);
    const result = {
      values: call.result('Float32Array', 'values', { rows, k }),
      indices: call.result('Int32Array', 'indices', { rows, k }),
    };
    return { request: [{ rows, columns, k, scores, lengths }, result], result: () => result };
  },
};

/**
 * The k largest scores of each row: the larger value first, of equal values the lower column; −0
 * equals +0. Scores of `sparseDot` may hold −Infinity for absent keys: sort them with
 * `nonFinite: 'propagate'`.
 *
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in a score that is read, ERR_OUT_OF_MEMORY.
 */
export const topK = asynchronous<AsyncOperation<TopKOptions, TopKResult>>(operation);

/** {@link topK} on the calling thread, which it blocks; borrows the inputs. */
export const topKSync = synchronous<SyncOperation<TopKOptions, TopKResult>>(operation);
