// The same bits whatever surrounds a sequence: thread count, batch, memory layout, form.

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { expectSameBits, expectSameResult } from './support/compare.mjs';
import { attentionInputs, indices, normals, oddView, swapAxes } from './support/data.mjs';
import { inputArrays, names, operations, resultArrays } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';

/** Calls long enough to be cut into many tasks, along every axis there is. */
function longCalls() {
  const shape = {
    batch: 1,
    heads: 1,
    queryLength: 1031,
    keyLength: 1537,
    headDim: 20,
    valueDim: 9,
  };
  const self = { ...shape, keyLength: 1031 };
  const inputs = () => ({ ...attentionInputs(shape, 1400), shape, details: true });
  const vectors = { inputs: normals(4001 * 20, 1403), shape: { batch: 1, length: 4001, dim: 20 } };
  const width = 3 * 8;
  const weights = {
    queryWeight: normals(width * 20, 1404, 0.3),
    keyWeight: normals(width * 20, 1405, 0.3),
    valueWeight: normals(width * 20, 1406, 0.3),
    outputWeight: normals(width * 20, 1407, 0.3),
  };
  return [
    ['attention', { ...inputs(), causal: true }],
    ['clusteredAttention', { ...inputs(), clusters: 13 }],
    ['improvedClusteredAttention', { ...inputs(), clusters: 13, grouping: 'euclidean' }],
    ['improvedClusteredAttention', { ...inputs(), clusters: 3, threshold: 'data' }],
    ['centroidAttention', inputs()],
    ['centroidAttention', { ...inputs(), normalize: 'inputs', aggregate: 'mean' }],
    [
      'castAttention',
      {
        ...attentionInputs(self, 1410),
        shape: self,
        surrogates: normals(8 * 20, 1413),
        gate: normals(1031, 1414),
        clusters: 8,
        clusterSize: 130,
        details: true,
      },
    ],
    ['centroidPool', { ...vectors, centroids: 11, initial: 'kmeans++', details: true }],
    ['centroidPool', { ...vectors, centroids: 11, similarity: 'euclidean', details: true }],
    [
      'centroidEncode',
      {
        ...vectors,
        ...weights,
        shape: { ...vectors.shape, heads: 3, headDim: 8 },
        centroids: 5,
        steps: 2,
        aggregate: 'mean',
      },
    ],
    ['kMeans', { ...vectors, clusters: 17, iterations: 20 }],
    ['aggregate', { ...vectors, labels: indices(4001, 1420, -1, 3), clusters: 4 }],
    ['topK', { scores: normals(2 * 40_013, 1421), shape: { rows: 2, columns: 40_013 }, k: 100 }],
  ];
}

describe('thread counts', () => {
  let before;
  beforeEach(() => {
    before = required.getNumThreads();
  });
  afterEach(() => required.setNumThreads(before));

  const typicalCalls = () => names.map((name) => [name, operations[name].typical()]);

  test.each([...typicalCalls(), ...longCalls()])(
    '%s is the same with 1, 2, 3 and 8',
    async (name, options) => {
      required.setNumThreads(1);
      const expected = required[`${name}Sync`](options);
      for (const threads of [2, 3, 8]) {
        required.setNumThreads(threads);
        expectSameResult(required[`${name}Sync`](options), expected);
        expectSameResult(await imported[name](options), expected);
      }
    },
  );
});

describe.each(names)('%s', (name) => {
  const { typical, minimal, batched, batchName = 'batch', arguments: known } = operations[name];
  const sync = required[`${name}Sync`];
  const calls = [
    ['minimal', minimal],
    ['typical', typical],
  ];

  test.each(calls)('both forms give the same bits: %s', async (_, make) => {
    const options = make();
    const before = inputArrays(options).map(([, array]) => array.slice());
    expectSameResult(await imported[name](options), sync(options));
    inputArrays(options).forEach(([, array], i) => expectSameBits(array, before[i]));
  });

  test.each(calls)('views at odd offsets give the same bits: %s', async (_, make) => {
    const options = make();
    const views = { ...options };
    for (const [input, array] of inputArrays(options)) views[input] = oddView(array);
    expectSameResult(sync(views), sync(options));
    expectSameResult(await imported[name](views), sync(options));
  });

  if (batched.length > 0) {
    test('a sequence alone gives the bits it has in the batch', () => {
      const options = typical();
      const together = resultArrays(sync(options));
      const batch = options.shape[batchName];
      const chunk = (array, b) =>
        array.slice((b * array.length) / batch, ((b + 1) * array.length) / batch);
      for (let b = 0; b < batch; ++b) {
        const alone = { ...options, shape: { ...options.shape, [batchName]: 1 } };
        for (const input of batched) {
          if (ArrayBuffer.isView(options[input])) alone[input] = chunk(options[input], b);
        }
        const result = resultArrays(sync(alone));
        for (const output of Object.keys(together)) {
          expectSameBits(result[output], chunk(together[output], b));
        }
      }
    });
  }

  if (known.out) {
    test('out receives the result and is what the call returns', async () => {
      for (const [, make] of calls) {
        const { output: expected } = resultArrays(sync(make()));
        for (const form of [sync, imported[name]]) {
          const out = new Float32Array(expected.length + 6)
            .fill(7)
            .subarray(3, 3 + expected.length);
          const { output } = resultArrays(await form({ ...make(), out }));
          expect(output).toBe(out);
          expectSameBits(out, expected);
          expect(Array.from(new Float32Array(out.buffer, 0, 3))).toEqual([7, 7, 7]);
          expect(new Float32Array(out.buffer).at(-1)).toBe(7);
        }
      }
    });
  }

  if (known.layout && known.query) {
    test('both layouts give the same bits', () => {
      const options = typical();
      const {
        batch,
        heads,
        queryLength,
        keyLength = queryLength,
        headDim,
        valueDim,
      } = options.shape;
      const swap = (array, rows, columns) => array && swapAxes(array, batch, heads, rows, columns);
      const swapped = {
        ...options,
        layout: 'BLHD',
        query: swap(options.query, queryLength, headDim),
      };
      swapped.key = swap(options.key, keyLength, headDim);
      if (options.value) swapped.value = swap(options.value, keyLength, valueDim);
      const expected = resultArrays(sync(options));
      const result = resultArrays(sync(swapped));
      for (const output of Object.keys(expected)) {
        const back =
          output === 'output' && options.value
            ? swapAxes(result.output, batch, queryLength, heads, valueDim)
            : result[output];
        expectSameBits(back, expected[output]);
      }
    });
  }
});
