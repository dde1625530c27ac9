import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { cases } from './support/cases.mjs';
import { expectSameResult } from './support/compare.mjs';
import { indices, integers, normals } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

describe('topK', () => {
  const topK = bothForms('topK');

  const expectAgreement = async (options) =>
    expectSameResult(await topK(options), oracle.topK(options));

  test.each(cases)('is the oracle exactly: $name', async (entry) => {
    const { queryLength: rows, keyLength: columns, topK: k } = entry;
    const shape = { rows, columns };
    await expectAgreement({ scores: normals(rows * columns, 800), shape, k });
    const lengths = indices(rows, 801, 0, columns);
    // Few different values, so that the cut falls among equals.
    await expectAgreement({ scores: integers(rows * columns, 802, -1, 1), shape, k, lengths });
  });

  test.each([1, 2, 15, 16, 17, 63, 64, 65, 500, 999, 1000, 1001])('k = %d of 1000', async (k) => {
    const shape = { rows: 3, columns: 1000 };
    await expectAgreement({ scores: normals(3000, 810), shape, k });
    await expectAgreement({ scores: integers(3000, 811, -3, 3), shape, k });
    await expectAgreement({ scores: new Float32Array(3000), shape, k });
  });

  test('−0 equals +0: the lower index first', async () => {
    const scores = Float32Array.of(-1, -0, 0, -0, 1, 0);
    const { indices: order } = await topK({ scores, shape: { rows: 1, columns: 6 }, k: 6 });
    expect(Array.from(order)).toEqual([4, 1, 2, 3, 5, 0]);
  });

  test('ascending, descending and extreme values', async () => {
    const ramp = Float32Array.from({ length: 200 }, (_, i) => i - 100);
    const tiny = 2 ** -149;
    const huge = 3.4028234663852886e38;
    for (const scores of [ramp, ramp.toReversed(), Float32Array.of(tiny, -huge, 0, huge, -tiny)]) {
      await expectAgreement({ scores, shape: { rows: 1, columns: scores.length }, k: 4 });
    }
  });

  test('propagates infinities and NaN in the common order', async () => {
    const scores = Float32Array.of(1, Infinity, NaN, -Infinity, 2, NaN);
    const options = { scores, shape: { rows: 1, columns: 6 }, k: 6, nonFinite: 'propagate' };
    const { values, indices: order } = await topK(options);
    expect(Array.from(order)).toEqual([2, 5, 1, 4, 0, 3]);
    expect(Array.from(values)).toEqual([NaN, NaN, Infinity, 2, 1, -Infinity]);
  });
});
