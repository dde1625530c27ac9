/** How centroids share the inputs: the options of centroidAttention and centroidEncode. */
import { Collect, Normalize } from './binding';
import type { Call, Floats, Integers } from './call';
import { isDeviceTensor } from './device-tensor';
import { invalidType, outOfRange, shapeMismatch } from './errors';
import { kindOf } from './intrinsics';

/** How the centroids share the inputs. */
export interface CentroidWeighting {
  /**
   * What the softmax runs over: the centroids, for each input (default, the paper's derivation), or
   * the inputs, for each centroid (cross-attention).
   */
  normalize?: 'centroids' | 'inputs' | undefined;
  /**
   * 'sum' (default), or 'mean': divided by the mass r_j + 1e-6, because the sum grows like N/M.
   */
  aggregate?: 'sum' | 'mean' | undefined;
  /** (B,N), ≥ 0: multipliers of the inputs; an input of weight 0 is never read. Default 1. */
  weights?: Float32Array | undefined;
  /** (B,M,K): the only inputs that each centroid sees; −1 is none, repeats count once. */
  neighbors?: Int32Array | undefined;
  /** K. Default what the length of `neighbors` gives. */
  neighborCount?: number | undefined;
}

/** The fields of a request that say how M centroids share N inputs. */
export interface WeightingFields {
  readonly normalize: number;
  readonly aggregate: number;
  readonly weights: Floats | undefined;
  readonly neighbors?: Integers;
  readonly neighborCount: number;
}

export function readCentroidWeighting(
  call: Call,
  batch: number,
  centroids: number,
  length: number,
  lengths: Int32Array | undefined,
): WeightingFields {
  const normalize = call.choice('normalize', Normalize, Normalize.centroids);
  const aggregate = call.choice('aggregate', Collect, Collect.sum);
  const weights = call.optionalFloats('weights', { batch, length });
  // Those on a device cannot be looked at from here.
  if (weights !== undefined && !isDeviceTensor(weights)) {
    checkWeights(weights, batch, length, lengths);
  }
  if (!call.has('neighbors')) {
    if (call.has('neighborCount')) {
      throw invalidType('neighbors', 'an Int32Array with neighborCount', undefined);
    }
    return { normalize, aggregate, weights, neighborCount: 0 };
  }
  const neighborCount = call.has('neighborCount')
    ? call.count('neighborCount')
    : neighborCountOf(call, batch, centroids);
  const neighbors = call.integers('neighbors', { batch, centroids, neighborCount });
  return { normalize, aggregate, weights, neighbors, neighborCount };
}

/** K when it is not given. Without a list any K will do. */
function neighborCountOf(call: Call, batch: number, centroids: number): number {
  const lists = batch * centroids;
  const elements = call.lengthOf('neighbors');
  const count = lists === 0 ? 1 : elements / lists;
  if (Number.isSafeInteger(count) && count > 0) return count;
  const value = call.value('neighbors');
  const expected = `an Int32Array of ${lists} lists of one length, (batch, centroids, neighborCount)`;
  throw kindOf(value) === 'Int32Array' || isDeviceTensor(value)
    ? shapeMismatch('neighbors', expected, `${elements} elements`)
    : invalidType('neighbors', expected, value);
}

/** Weights of real inputs are not negative. NaN is left to the native code, as in any input. */
function checkWeights(
  weights: Float32Array,
  batch: number,
  length: number,
  lengths: Int32Array | undefined,
): void {
  for (let b = 0; b < batch; ++b) {
    const end = b * length + (lengths?.[b] ?? length);
    for (let i = b * length; i < end; ++i) {
      if (weights[i]! < 0) throw outOfRange('weights', 'filled with numbers ≥ 0', weights[i], i);
    }
  }
}
