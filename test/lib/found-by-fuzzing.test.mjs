// What the fuzzers of test/fuzz found in the addon, as calls.

import { createRequire } from 'node:module';
import { describe, expect, test } from 'vitest';
import { operations } from './support/operations.mjs';
import { required } from './support/package.mjs';

const { binding } = createRequire(import.meta.url)('../../dist/binding.js');

const LARGEST = 2 ** 31 - 1;

/** The request that lib/ sends to the addon for this call. */
function requestOf(native, call) {
  const original = binding[native];
  let request;
  binding[native] = (each) => original((request = each));
  call();
  binding[native] = original;
  return request;
}

describe('huge sizes around empty arrays end at once', () => {
  // They reserved memory, or counted, by the sizes that no element has.
  const floats = () => new Float32Array(0);
  const padding = (batch) => new Int32Array(batch);
  const calls = {
    sparseWeightedSum: () => ({
      weights: floats(),
      value: floats(),
      indices: new Int32Array(0),
      keyLengths: padding(21),
      queryLengths: padding(21),
      k: 1,
      shape: { batch: 21, heads: 38, queryLength: 0, keyLength: 0, valueDim: LARGEST },
    }),
    attention: () => ({
      query: floats(),
      key: floats(),
      value: floats(),
      shape: { batch: 0, heads: 1, queryLength: LARGEST, keyLength: LARGEST, headDim: 1 },
    }),
    castAttention: () => ({
      query: floats(),
      key: floats(),
      value: floats(),
      gate: floats(),
      surrogates: new Float32Array(2),
      clusters: 2,
      clusterSize: 5,
      shape: { batch: 0, heads: 1, queryLength: LARGEST, headDim: 1 },
    }),
    centroidEncode: () => {
      const { minimal } = operations.centroidEncode;
      const { shape, ...options } = minimal();
      return { ...options, inputs: floats(), shape: { ...shape, batch: 0, length: LARGEST } };
    },
  };

  test.each(Object.keys(calls))('%s', (name) => {
    const before = process.memoryUsage.rss();
    const begin = performance.now();
    expect(required[`${name}Sync`](calls[name]())).toHaveLength(0);
    expect(performance.now() - begin).toBeLessThan(2000);
    expect(process.memoryUsage.rss() - before).toBeLessThan(2 ** 26);
  });
});

test('the backward of CAST over huge sizes around empty arrays ends at once', () => {
  const empty = new Float32Array(0);
  const state = required.castAttentionVjpSync({
    query: empty,
    key: empty,
    value: empty,
    gate: empty,
    surrogates: new Float32Array(1),
    clusters: 1,
    clusterSize: LARGEST,
    shape: { batch: 0, heads: 1, queryLength: LARGEST, headDim: 1 },
  });
  expect(state.backward(empty).surrogates).toEqual(new Float32Array(1));
});

describe('the addon checks again', () => {
  test('each token of CAST is a query and a key', () => {
    const { minimal } = operations.castAttention;
    const request = requestOf('castAttention', () => required.castAttentionSync(minimal()));
    // Arrays that fit: the kernel went by the keys, and wrote that many rows.
    const rows = (name) => request[name].slice(0, request[name].length / request.keyLength);
    const shorter = { ...request, queryLength: 1, query: rows('query'), output: rows('output') };
    expect(() => binding.castAttention(shorter)).toThrow(
      expect.objectContaining({
        code: 'ERR_OUT_OF_RANGE',
        message: expect.stringContaining('queryLength must be keyLength'),
      }),
    );
    expect(binding.castAttention(request)).toBeUndefined();
  });

  test('a single assignment of CAST has room for each token', () => {
    const { minimal } = operations.castAttention;
    const options = { ...minimal(), selection: 'singleAssignment' };
    const request = requestOf('castAttention', () => required.castAttentionSync(options));
    expect(
      binding.castAttention({ ...request, clusterSize: 0, resultIndices: undefined }),
    ).toMatchObject({ status: 'shape_mismatch', argument: 'clusterSize' });
  });

  test('clusters of CAST without room for a token have a summary of zeros', () => {
    const { minimal } = operations.castAttention;
    const request = requestOf('castAttention', () => required.castAttentionSync(minimal()));
    const nothing = { ...request, clusterSize: 0, resultIndices: undefined };
    // The summaries of the call before were found in the memory of the next.
    for (let i = 0; i < 20; ++i) {
      expect(binding.castAttention(request)).toBeUndefined();
      nothing.output.fill(1);
      expect(binding.castAttention(nothing)).toBeUndefined();
      expect(nothing.output).toEqual(new Float32Array(nothing.output.length));
    }
  });
});
