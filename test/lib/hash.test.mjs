import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { cases } from './support/cases.mjs';
import { expectSameBits } from './support/compare.mjs';
import { integers, normals } from './support/data.mjs';
import { bothForms, required } from './support/package.mjs';

describe('hash', () => {
  const hash = bothForms('hash');

  test.each(cases)('sets bit b where x·plane_b > threshold_b: $name', async (entry) => {
    const { keyLength: rows, headDim: dim, bits } = entry;
    const shape = { rows, dim, bits };
    const inputs = normals(rows * dim, 400);
    const planes = normals(bits * (dim + 1), 401);
    const hashes = await hash({ inputs, planes, shape });
    expect(hashes).toBeInstanceOf(BigUint64Array);
    expect(hashes.length).toBe(rows);
    const expected = oracle.hash(inputs, planes, shape);
    const margins = oracle.hashMargins(inputs, planes, shape);
    hashes.forEach((word, row) => {
      // Only a projection within rounding of its threshold may fall on the other side.
      for (let bit = 0; bit < 64; ++bit) {
        if ((((word ^ expected[row]) >> BigInt(bit)) & 1n) === 0n) continue;
        expect(bit).toBeLessThan(bits);
        expect(Math.abs(margins[row * bits + bit])).toBeLessThan(1e-5);
      }
    });
  });

  test('is exact and strict for whole numbers: a projection on its threshold gives 0', async () => {
    const shape = { rows: 200, dim: 19, bits: 64 };
    const inputs = integers(200 * 19, 402);
    const planes = integers(64 * 20, 403);
    const margins = oracle.hashMargins(inputs, planes, shape);
    expect(margins.some((margin) => margin === 0)).toBe(true);
    expectSameBits(await hash({ inputs, planes, shape }), oracle.hash(inputs, planes, shape));
  });

  test('puts bit b at position b', async () => {
    const planes = new Float32Array(64 * 2);
    planes[2 * 63] = 1;
    planes[2 * 5] = -1;
    const shape = { rows: 2, dim: 1, bits: 64 };
    const hashes = await hash({ inputs: Float32Array.of(2, -2), planes, shape });
    expectSameBits(hashes, BigUint64Array.of(1n << 63n, 1n << 5n));
  });
});

describe('lshPlanes', () => {
  const lshPlanes = bothForms('lshPlanes');

  test('draws N(0,1), the same for the same seed', async () => {
    const planes = await lshPlanes({ bits: 64, dim: 255, seed: 3 });
    expect(planes).toBeInstanceOf(Float32Array);
    expect(planes.length).toBe(64 * 256);
    expectSameBits(planes, await lshPlanes({ bits: 64, dim: 255, seed: 3 }));
    const mean = (power) => planes.reduce((sum, x) => sum + x ** power, 0) / planes.length;
    // Five standard errors of each moment for 16,384 draws.
    expect(Math.abs(mean(1))).toBeLessThan(5 / 128);
    expect(Math.abs(mean(2) - 1)).toBeLessThan((5 * Math.sqrt(2)) / 128);
    expect(Math.abs(mean(3))).toBeLessThan((5 * Math.sqrt(15)) / 128);
    expect(Math.abs(mean(4) - 3)).toBeLessThan((5 * Math.sqrt(96)) / 128);
    expect(new Set(planes).size).toBeGreaterThan(16_000);
  });

  test('seed 0 is the default, other seeds differ, large seeds too', async () => {
    const planes = await lshPlanes({ bits: 8, dim: 5 });
    expectSameBits(planes, await lshPlanes({ bits: 8, dim: 5, seed: 0 }));
    const seeds = [1, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER];
    const drawn = await Promise.all(seeds.map((seed) => lshPlanes({ bits: 8, dim: 5, seed })));
    expect(new Set([planes, ...drawn].map(String)).size).toBe(seeds.length + 1);
  });

  test('hashBias: false sets the last column to 0', async () => {
    const planes = await lshPlanes({ bits: 9, dim: 4, seed: 2, hashBias: false });
    const biased = await lshPlanes({ bits: 9, dim: 4, seed: 2, hashBias: true });
    expectSameBits(biased, await lshPlanes({ bits: 9, dim: 4, seed: 2 }));
    for (let bit = 0; bit < 9; ++bit) {
      expect(planes[bit * 5 + 4]).toBe(0);
      expect(biased[bit * 5 + 4]).not.toBe(0);
    }
  });

  test('close rows agree in more bits than far ones', async () => {
    const planes = await lshPlanes({ bits: 64, dim: 32, hashBias: false });
    const row = normals(32, 410);
    const near = row.map((x, i) => x + 0.1 * normals(32, 411)[i]);
    const inputs = Float32Array.from([...row, ...near, ...row.map((x) => -x)]);
    const hashes = required.hashSync({ inputs, planes, shape: { rows: 3, dim: 32, bits: 64 } });
    const distance = (a, b) => oracle.popcount(hashes[a] ^ hashes[b]);
    expect(distance(0, 1)).toBeLessThan(12);
    expect(distance(0, 2)).toBe(64);
  });
});
