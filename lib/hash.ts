import { allocate } from './arrays';
import { CALL_OPTIONS, type Call } from './call';
import { CPU } from './device-name';
import { computeSync } from './native-call';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import { MAXIMUM_DIMENSION } from './options';
import type { CommonOptions, DetailedOperation, DetailedOperationSync, CallOptions } from './types';

/** Options of {@link lshPlanes}. */
export interface LshPlanesOptions extends CallOptions {
  /** 1 to 64 */
  bits: number;
  /** Elements of the vectors to hash. */
  dim: number;
  /** A safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
  /** Whether planes have a random threshold; 0 otherwise. Default true. */
  hashBias?: boolean | undefined;
}

/** Options of {@link hash}. */
export interface HashOptions extends CommonOptions {
  /** (rows,dim) */
  inputs: Float32Array;
  /** (bits,dim+1): the threshold of each plane last */
  planes: Float32Array;
  shape: { rows: number; dim: number; bits: number };
}

const planesOperation: Operation = {
  name: 'lshPlanes',
  native: 'lshPlanes',
  options: [...CALL_OPTIONS, 'bits', 'dim', 'seed', 'hashBias', 'out'],
  prepare(call: Call): Prepared {
    const bits = call.integer('bits', 1, 64);
    const dim = call.integer('dim', 1, MAXIMUM_DIMENSION);
    const seed = call.seed();
    const hashBias = call.flag('hashBias', true);
    const output = call.output({ bits, 'dim + 1': dim + 1 });
    return { request: [{ bits, dim, seed, hashBias, output }], result: () => call.deliver() };
  },
};

const hashOperation: Operation = {
  name: 'hash',
  native: 'hash',
  options: [...CALL_OPTIONS, 'inputs', 'planes', 'shape'],
  shape: ['rows', 'dim', 'bits'],
  prepare(call: Call): Prepared {
    const rows = call.dimension('rows', 0);
    const dim = call.dimension('dim', 1);
    const bits = call.dimension('bits', 1, undefined, 64);
    const inputs = call.floats('inputs', { rows, dim });
    const planes = call.floats('planes', { bits, 'dim + 1': dim + 1 });
    const hashes = call.result('BigUint64Array', 'hashes', { rows });
    return { request: [{ rows, dim, bits, inputs, planes, hashes }], result: () => hashes };
  },
};

const none: Float32Array = new Float32Array(0);

/** Elements of planes that are drawn on the calling thread, within some 2 ms, and kept. */
const MOST_DRAWN_HERE = 1 << 16;

/** The planes drawn last: a model asks for the same ones in every layer and every call. */
let latest = { bits: 0, dim: 0, seed: 0, hashBias: false, output: none };

/**
 * The planes of {@link lshPlanes}, for reading only; undefined when they are so large that the call
 * draws them itself, on the threads that it computes on.
 */
export function drawPlanes(
  bits: number,
  dim: number,
  seed: number,
  hashBias: boolean,
): Float32Array | undefined {
  if (bits * (dim + 1) > MOST_DRAWN_HERE) return undefined;
  const same =
    latest.bits === bits &&
    latest.dim === dim &&
    latest.seed === seed &&
    latest.hashBias === hashBias;
  if (!same) {
    const output = allocate('Float32Array', 'planes', { bits, 'dim + 1': dim + 1 });
    const request = { bits, dim, seed, hashBias, output };
    const settings = { name: 'lshPlanes', nonFinite: 0, precision: 0, device: CPU, storage: 0 };
    const error = computeSync('lshPlanes', settings, [request]);
    if (error !== undefined) throw error;
    latest = request;
  }
  return latest.output;
}

/**
 * Random planes for {@link hash}: normals (bits,dim) from N(0,1) with the threshold in the last
 * column, drawn by a counter-based generator.
 *
 * @returns (bits,dim+1)
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE for wrong options, ERR_OUT_OF_MEMORY.
 */
export const lshPlanes: DetailedOperation<LshPlanesOptions, { output: Float32Array }> =
  asynchronous(planesOperation);

/** {@link lshPlanes} on the calling thread, which it blocks. */
export const lshPlanesSync: DetailedOperationSync<LshPlanesOptions, { output: Float32Array }> =
  synchronous(planesOperation);

/**
 * Locality-sensitive hash of each row: bit b is 1 when the row's product with plane b is larger
 * than the plane's threshold (Vyas, Katharopoulos, Fleuret, 2020, section 3.2).
 *
 * @returns (rows), bit b at position b
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_NON_FINITE for a NaN or an infinity in an input, ERR_OUT_OF_MEMORY.
 */
export const hash: DetailedOperation<HashOptions, { output: BigUint64Array }> =
  asynchronous(hashOperation);

/** {@link hash} on the calling thread, which it blocks; borrows the inputs. */
export const hashSync: DetailedOperationSync<HashOptions, { output: BigUint64Array }> =
  synchronous(hashOperation);
