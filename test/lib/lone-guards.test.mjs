// Cases that one line of a kernel alone answers: no other look, and no other output, would show it.

import { describe, expect, test } from 'vitest';
import { normals } from './support/data.mjs';
import { required } from './support/package.mjs';

const floats = (...values) => Float32Array.from(values);
const all = (count, value) => new Float32Array(count).fill(value);

describe('castAttention', () => {
  const given = { clusters: 2, clusterSize: 2, indices: Int32Array.of(0, 1, 2, 3) };
  const options = ({ tokens = 4, ...more }) => ({
    query: all(tokens, 0.1),
    key: all(tokens, 0.1),
    value: all(tokens, 1),
    gate: all(tokens, 0),
    surrogates: all(more.clusters, 0.1),
    shape: { batch: 1, heads: 1, queryLength: tokens, headDim: 1 },
    ...more,
  });

  test.each([
    [
      'a key of a token in no cluster, where its products leave the softmax',
      { clusters: 1, clusterSize: 1, activation: 'laplace', surrogates: floats(1) },
      { key: floats(0.1, -Infinity, 0.1, 0.1) },
    ],
    [
      'an output that overflows in the last sum',
      { tokens: 1, clusters: 2, clusterSize: 1, activation: 'laplace', scale: 1 },
      { value: floats(3e38), query: floats(1), key: floats(5), surrogates: floats(5, 5) },
    ],
    [
      'a logit of a summary',
      given,
      { surrogates: floats(1e30, 1), query: all(4, 1e-20), key: floats(1, -1e10, 1, 1) },
    ],
    [
      'a logit within a cluster',
      given,
      { surrogates: floats(0, 0), query: all(4, 1e10), key: floats(1, -1e30, 1, 1) },
    ],
    [
      'a logit over the clusters',
      given,
      { surrogates: floats(1e-10, -1e30), query: all(4, 1e10), key: all(4, 0) },
    ],
  ])('refuses %s', (_, which, values) => {
    const call = () => required.castAttentionSync(options({ ...which, ...values }));
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_NON_FINITE' }));
  });

  const large = floats(1e20, -1e20, 2e20, 3e20);
  test.each([
    [
      'value',
      { clusters: 1, clusterSize: 4, query: all(4, 10), key: floats(10, 0, 0, 0) },
      all(4, 3e38),
    ],
    [
      'gate',
      {
        clusters: 2,
        clusterSize: 2,
        value: large,
        surrogates: floats(1e10, -1e10),
        key: floats(1e-10, 2e-10, 3e-10, 4e-10),
        query: floats(1e-10, 2e-10, 3e-10, 4e-10),
      },
      all(4, 1e18),
    ],
    [
      'surrogates',
      {
        clusters: 2,
        clusterSize: 2,
        value: large,
        surrogates: floats(1, -1),
        key: floats(1, 2, 3, 4),
        query: floats(1, 2, 3, 4),
      },
      all(4, 1e20),
    ],
  ])(
    'refuses a gradient by %s that overflows, when it is all that is wanted',
    (name, which, dO) => {
      const state = required.castAttentionVjpSync(options(which));
      const backward = () => state.backward(dO, { gradients: [name] });
      expect(backward).toThrow(expect.objectContaining({ code: 'ERR_NON_FINITE' }));
    },
  );

  test.each([
    ['of a cluster each', given, [1]],
    [
      'of two clusters',
      { clusters: 3, clusterSize: 2, indices: Int32Array.of(0, -1, 1, -1, 0, 2) },
      [2],
    ],
  ])('keeps a NaN of a summary from its members, %s', (_, which, bad) => {
    const gate = all(4, 0);
    for (const token of bad) gate[token] = NaN;
    const output = required.castAttentionSync(options({ ...which, gate, nonFinite: 'propagate' }));
    expect(output).toEqual(floats(1, NaN, NaN, NaN));
  });

  test.each([NaN, Infinity])('keeps %s of an output gradient from the gates next to it', (bad) => {
    const state = required.castAttentionVjpSync(
      options({
        ...given,
        query: floats(0.1, 0.2, 0.3, 0.4),
        key: floats(0.1, 0.2, 0.3, 0.4),
        value: floats(1, 2, 3, 4),
        surrogates: floats(0.5, -0.5),
        nonFinite: 'propagate',
      }),
    );
    const clean = state.backward(floats(1, 5, 1, 1)).gate;
    const { gate } = state.backward(floats(1, bad, 1, 1));
    expect(gate[0]).toBe(clean[0]);
    expect([...gate.subarray(1)].map(Number.isFinite)).toEqual([false, false, false]);
  });

  // Given twice, a real token is refused.
  test.each([1, 2])('a padded token that is given %d times is an empty slot', (times) => {
    const { indices } = required.castAttentionSync(
      options({
        clusters: 1,
        clusterSize: 1 + times,
        indices: Int32Array.of(0, ...all(times, 3)),
        keyLengths: Int32Array.of(3),
        details: true,
      }),
    );
    expect(indices).toEqual(Int32Array.of(0, ...all(times, -1)));
  });
});

test('gradients of sequences with fewer clusters than others are those of each alone', () => {
  // Chunks of clusters: three of the first sequence, two of the second.
  const shape = { batch: 2, heads: 1, queryLength: 200, keyLength: 100, headDim: 2 };
  const inputs = { query: normals(800, 1), key: normals(400, 2), value: normals(400, 3) };
  const more = { clusters: 200, topK: 64, grouping: 'euclidean', iterations: 0 };
  const gradients = (options) =>
    required
      .improvedClusteredAttentionVjpSync({ ...more, ...options })
      .backward(all(options.query.length, 1));
  const lengths = [200, 100];
  const both = gradients({ ...inputs, shape, queryLengths: Int32Array.from(lengths) });
  for (const [b, length] of lengths.entries()) {
    const part = (array) => array.slice((b * array.length) / 2, ((b + 1) * array.length) / 2);
    const alone = gradients({
      query: part(inputs.query),
      key: part(inputs.key),
      value: part(inputs.value),
      shape: { ...shape, batch: 1 },
      queryLengths: Int32Array.of(length),
    });
    for (const name of ['query', 'key', 'value']) expect(part(both[name])).toEqual(alone[name]);
  }
});

test('hammingKMeans counts the bits of 256 equal hashes', () => {
  const { centroids } = required.hammingKMeansSync({
    hashes: new BigUint64Array(256).fill(1n),
    shape: { batch: 1, length: 256 },
    clusters: 1,
    initial: BigUint64Array.of(0n),
  });
  expect(centroids).toEqual(BigUint64Array.of(1n));
});

test.each([511, 512, 513, 1024])('centroidPool takes all of %d inputs by hard labels', (length) => {
  const { output, masses } = required.centroidPoolSync({
    inputs: all(length, 1),
    shape: { batch: 1, length, dim: 1 },
    centroids: 1,
    temperature: 0,
    similarity: 'dot',
    initial: floats(3),
    details: true,
  });
  expect([output[0], masses[0]]).toEqual([1, length]);
});

test('kMeans under the cosine: a centroid of zeros is as far as what is orthogonal', () => {
  const { labels } = required.kMeansSync({
    inputs: floats(0.3, 0.954, -1, -0.2),
    shape: { batch: 1, length: 2, dim: 2 },
    clusters: 2,
    metric: 'cosine',
    initial: floats(1, 0, 0, 0),
    iterations: 0,
  });
  expect(labels).toEqual(Int32Array.of(0, 1));
});
