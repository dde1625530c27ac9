import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseCall, cases } from './support/cases.mjs';
import { expectAll, expectClose } from './support/compare.mjs';
import { indices, normals, omit, swapAxes } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

/** Both ways of listing keys: per query, and per cluster with labels. Lists may be wider than S. */
function lists({ batch, heads, queryLength, keyLength }, entry, seed) {
  const { topK: k, clusters } = entry;
  const list = (count) => indices(count * k, seed, -1, keyLength - 1);
  const labels = indices(batch * heads * queryLength, seed + 1, -1, clusters - 1);
  return [
    { indices: list(batch * heads * queryLength), k },
    { indices: list(batch * heads * clusters), k, labels, clusters },
  ];
}

describe('sparseDot', () => {
  const sparseDot = bothForms('sparseDot');

  test.each(cases)('agrees with the oracle: $name', async (entry) => {
    const { options, plain } = caseCall(entry, 900);
    for (const listed of lists(plain.shape, entry, 901)) {
      const call = omit({ ...options, ...listed }, 'value');
      expectClose(await sparseDot(call), oracle.sparseDot({ ...plain, ...listed }));
    }
  });

  test('index −1 gives −Infinity', async () => {
    const shape = { batch: 1, heads: 1, queryLength: 2, keyLength: 3, headDim: 2 };
    const listed = { indices: Int32Array.of(-1, 2, 0, -1), k: 2 };
    const options = { query: normals(4, 910), key: normals(6, 911), shape, ...listed };
    const output = await sparseDot(options);
    expect([output[0], output[3]]).toEqual([-Infinity, -Infinity]);
    expectClose(output, oracle.sparseDot(options));
  });
});

describe('sparseWeightedSum', () => {
  const sparseWeightedSum = bothForms('sparseWeightedSum');

  test.each(cases)('agrees with the oracle: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 920);
    const { batch, heads, queryLength } = plain.shape;
    for (const listed of lists(plain.shape, entry, 921)) {
      const weights = normals(batch * heads * queryLength * listed.k, 922);
      const call = omit({ ...options, ...listed, weights }, 'query', 'key');
      const expected = oracle.sparseWeightedSum({ ...plain, weights, ...listed });
      expectClose(toPlain(await sparseWeightedSum(call)), expected);
    }
  });

  test('a query whose list is empty gets a row of zeros', async () => {
    const shape = { batch: 1, heads: 2, queryLength: 3, keyLength: 4, headDim: 2 };
    const listed = { indices: new Int32Array(12).fill(-1), k: 2 };
    const options = { weights: normals(12, 930), value: normals(16, 931), shape, ...listed };
    expectAll(await sparseWeightedSum(options), 0);
  });

  test('reads values in both layouts alike', async () => {
    const shape = { batch: 2, heads: 3, queryLength: 5, keyLength: 7, headDim: 4 };
    const value = normals(2 * 3 * 7 * 4, 940);
    const call = { weights: normals(90, 941), indices: indices(90, 942, -1, 6), k: 3, shape };
    const swapped = await sparseWeightedSum({
      ...call,
      value: swapAxes(value, 2, 3, 7, 4),
      layout: 'BLHD',
    });
    expectClose(swapAxes(swapped, 2, 5, 3, 4), await sparseWeightedSum({ ...call, value }), 0);
  });
});
