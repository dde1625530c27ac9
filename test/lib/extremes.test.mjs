// Numbers whose squares or products leave float32: what is chosen and computed must be what the
// definition says, or the call must fail.

import { describe, expect, test } from 'vitest';
import { expectSameBits } from './support/compare.mjs';
import { normals } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

const times = (array, factor) => array.map((value) => value * factor);

describe('starting rows', () => {
  const shape = { batch: 1, length: 40, dim: 3 };
  const starts = ['farthest', 'kmeans++'];
  // Squared distances overflow, differences too, squared distances underflow, rows are denormal.
  const scales = [2 ** 70, 2 ** 125, 2 ** -60, 2 ** -80, 2 ** -120];
  const coarse = normals(120, 3100).map((value) => Math.round(value * 64) / 64);

  test.each(starts.flatMap((initial) => scales.map((scale) => [initial, scale])))(
    '%s of pooling: the same whatever the scale: %f',
    async (initial, scale) => {
      const call = { shape, centroids: 9, iterations: 0, initial, similarity: 'dot' };
      const pool = bothForms('centroidPool');
      const expected = await pool({ ...call, inputs: coarse });
      const actual = await pool({ ...call, inputs: times(coarse, scale) });
      expectSameBits(actual, times(expected, scale));
    },
  );

  test.each(starts)('%s: near rows are told apart once far ones are taken', async (initial) => {
    const inputs = Float32Array.of(0, 1, 0, 1e-30, 3e-30, 2e-30, 0);
    const call = { shape: { batch: 1, length: 7, dim: 1 }, initial, similarity: 'dot' };
    const pool = bothForms('centroidPool');
    const chosen = await pool({ ...call, inputs, centroids: 3, iterations: 0 });
    if (initial === 'farthest') expectSameBits(chosen, Float32Array.of(0, 1, 3e-30));
    expect(new Set(chosen).size).toBe(3);
  });

  test('farthest rows of the learned layer, of huge inputs and small weights', async () => {
    const inputs = times(coarse, 2 ** 70);
    const weight = times(normals(9, 3101), 2 ** -70);
    const names = ['queryWeight', 'keyWeight', 'valueWeight', 'outputWeight'];
    const weights = Object.fromEntries(names.map((name) => [name, weight]));
    const call = { shape: { ...shape, heads: 1, headDim: 3 }, centroids: 9, initial: 'farthest' };
    const encode = bothForms('centroidEncode');
    const huge = await encode({ ...weights, ...call, inputs, steps: 0 });
    const plain = await encode({ ...weights, ...call, inputs: coarse, steps: 0 });
    expectSameBits(huge, times(plain, 2 ** 70));
  });
});
