import { copyOf } from './arrays';
import { CALL_OPTIONS, type Call, type Hashes } from './call';
import { isDeviceTensor } from './device-tensor';
import * as intrinsics from './intrinsics';
import { asynchronous, synchronous, type Operation, type Prepared } from './operation';
import type { AsyncOperation, CommonOptions, SyncOperation } from './types';

/** Options of {@link hammingKMeans}. */
export interface HammingKMeansOptions extends CommonOptions {
  /** (batch,length) */
  hashes: BigUint64Array;
  shape: { batch: number; length: number };
  /** C ≥ 1; clusters past the real length of a sequence stay empty. */
  clusters: number;
  /**
   * How many bits of a hash are in use, the lowest, 1 to 64. The others do not count; in a
   * DeviceTensor they must be 0. Default 64.
   */
  bits?: number | undefined;
  /** Most updates of the centroids. Default 10. */
  iterations?: number | undefined;
  /** Of the first centroids; a safe integer ≥ 0. Default 0. */
  seed?: number | undefined;
  /** (batch,C): first centroids. Default the hashes at C distinct random positions. */
  initial?: BigUint64Array | undefined;
  /** (batch): how many leading hashes are real. Default all. */
  lengths?: Int32Array | undefined;
}

/** What {@link hammingKMeans} returns. */
export interface HammingKMeansResult {
  /** (batch,length): nearest centroid (tie: lowest), −1 for padding */
  labels: Int32Array;
  /** (batch,C) */
  counts: Int32Array;
  /** (batch,C): majority of the members, bit by bit */
  centroids: BigUint64Array;
  /** (batch): updates that were made */
  iterations: Int32Array;
}

/**
 * The hashes without the bits that are not in use, which the native code would compare and count.
 * Those on a device cannot be looked at from here.
 */
function lowBits(name: string, hashes: Hashes, bits: number): Hashes {
  if (bits === 64 || isDeviceTensor(hashes)) return hashes;
  const mask = intrinsics.create('BigUint64Array', 1);
  mask[0] = (1n << BigInt(bits)) - 1n;
  const used = intrinsics.wordsOf(mask);
  const words = intrinsics.wordsOf(hashes);
  let others = 0;
  for (let i = 0; i < words.length; ++i) others |= words[i]! & ~used[i % 2]!;
  if (others === 0) return hashes;
  const copy = copyOf(name, 'BigUint64Array', hashes) as BigUint64Array;
  const low = intrinsics.wordsOf(copy);
  for (let i = 0; i < low.length; ++i) low[i]! &= used[i % 2]!;
  return copy;
}

const operation: Operation = {
  name: 'hammingKMeans',
  native: 'hammingKMeans',
  options: [
    ...CALL_OPTIONS,
    'hashes',
    'shape',
    'clusters',
    'bits',
    'iterations',
    'seed',
    'initial',
    'lengths',
  ],
  shape: ['batch', 'length'],
  prepare(call: Call): Prepared {
    const batch = call.dimension('batch', 0);
    const length = call.dimension('length', 0);
    const clusters = call.count('clusters');
    const bits = call.integer('bits', 1, 64, 64);
    const maxIterations = call.iterations('iterations', 10);
    const seed = call.seed();
    const hashes = lowBits('hashes', call.hashes('hashes', { batch, length }), bits);
    const given = call.optionalHashes('initial', { batch, clusters });
    const initial = given && lowBits('initial', given, bits);
    const lengths = call.lengths('lengths', { batch }, length);
    const result = {
      labels: call.result('Int32Array', 'labels', { batch, length }),
      counts: call.result('Int32Array', 'counts', { batch, clusters }),
      centroids: call.result('BigUint64Array', 'centroids', { batch, clusters }),
      iterations: call.result('Int32Array', 'iterations', { batch }),
    };
    const sizes = { batch, length, clusters, bits, maxIterations, seed };
    return { request: [sizes, { hashes, initial, lengths }, result], result: () => result };
  },
};

/**
 * K-means of hashes in Hamming space, batched (Vyas, Katharopoulos, Fleuret, 2020, section 3.2):
 * assignment to the nearest centroid, centroids by bitwise majority.
 *
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong options,
 * ERR_OUT_OF_MEMORY.
 */
export const hammingKMeans =
  asynchronous<AsyncOperation<HammingKMeansOptions, HammingKMeansResult>>(operation);

/** {@link hammingKMeans} on the calling thread, which it blocks; borrows the inputs. */
export const hammingKMeansSync =
  synchronous<SyncOperation<HammingKMeansOptions, HammingKMeansResult>>(operation);
