import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { cases } from './support/cases.mjs';
import { expectAll, expectSameBits } from './support/compare.mjs';
import { words } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

describe('hammingKMeans', () => {
  const hammingKMeans = bothForms('hammingKMeans');

  /** The start of a call: what `iterations: 0` returns as centroids. */
  const startOf = async (options) =>
    (await hammingKMeans({ ...options, initial: undefined, iterations: 0 })).centroids;

  /** The whole result by the oracle, from a given start. */
  function expectedResult({ hashes, shape, clusters, bits, iterations, lengths }, start) {
    const { batch, length } = shape;
    const labels = new Int32Array(batch * length).fill(-1);
    const centroids = new BigUint64Array(batch * clusters);
    const updates = new Int32Array(batch);
    for (let b = 0; b < batch; ++b) {
      const real = lengths?.[b] ?? length;
      const used = Math.min(clusters, real);
      const initial = start.subarray(b * clusters, b * clusters + used);
      const rows = hashes.subarray(b * length, b * length + real);
      const result = oracle.hammingKMeans(rows, initial, iterations ?? 10, bits);
      labels.set(result.labels, b * length);
      centroids.set(result.centroids, b * clusters);
      updates[b] = result.updates;
    }
    const counts = oracle.countLabels(labels, batch, clusters);
    return { labels, counts, centroids, iterations: updates };
  }

  async function expectAgreement(options, start) {
    const actual = await hammingKMeans(options);
    const expected = expectedResult(options, start);
    expect(Object.keys(actual).toSorted()).toEqual(Object.keys(expected).toSorted());
    for (const name of Object.keys(expected)) {
      if (expected[name].length > 0 && options.shape.length > 0) {
        expectSameBits(actual[name], expected[name]);
      }
    }
    return actual;
  }

  function call(entry, seed, bits = entry.bits) {
    const { batch, queryLength: length, clusters } = entry;
    const hashes = words(batch * length, seed, bits);
    const lengths = entry.queryLengths && Int32Array.from(entry.queryLengths);
    return { hashes, shape: { batch, length }, clusters, bits, ...(lengths && { lengths }) };
  }

  test.each(cases)('is the oracle bit for bit: $name', async (entry) => {
    const options = call(entry, 500);
    await expectAgreement(options, await startOf(options));
    const initial = words(entry.batch * entry.clusters, 501, entry.bits);
    await expectAgreement({ ...options, initial }, initial);
  });

  test.each(cases)('with few bits, so that most distances tie: $name', async (entry) => {
    const options = { ...call(entry, 510, Math.min(entry.bits, 3)), iterations: 4, seed: 9 };
    await expectAgreement(options, await startOf(options));
  });

  const shape = { batch: 2, length: 40 };
  const options = () => ({ hashes: words(80, 520, 12), shape, clusters: 6, bits: 12 });

  test('starts at distinct real positions, the same ones for every sequence', async () => {
    const places = BigUint64Array.from({ length: 80 }, (_, i) => BigInt(i % 40));
    for (const seed of [0, 1, 77]) {
      const start = await startOf({ hashes: places, shape, clusters: 15, seed });
      expect(new Set(start.subarray(0, 15)).size).toBe(15);
      expectSameBits(start.slice(0, 15), start.slice(15));
      const lengths = Int32Array.of(17, 15);
      const short = await startOf({ hashes: places, shape, clusters: 15, seed, lengths });
      expect(new Set(short.subarray(0, 15)).size).toBe(15);
      expect(short.subarray(0, 15).every((place) => place < 17n)).toBe(true);
      expect(new Set(short.subarray(15)).size).toBe(15);
    }
    const all = await startOf({ hashes: places, shape, clusters: 40, seed: 3 });
    expect(new Set(all.subarray(0, 40)).size).toBe(40);
  });

  test('labels are nearest to the returned centroids even when the iterations run out', async () => {
    for (const iterations of [0, 1, 2, 10]) {
      const { labels, centroids } = await hammingKMeans({ ...options(), iterations });
      const { hashes } = options();
      labels.forEach((label, i) => {
        const own = Array.from(centroids.subarray(i < 40 ? 0 : 6, i < 40 ? 6 : 12));
        const distances = own.map((centroid) => -oracle.popcount(centroid ^ hashes[i]));
        expect(label).toBe(oracle.bestFirst(distances, 1)[0]);
      });
    }
  });

  test('bit majority: a tie gives 0; an empty cluster keeps its centroid', async () => {
    const result = await hammingKMeans({
      hashes: BigUint64Array.of(0b0011n, 0b0101n),
      shape: { batch: 1, length: 2 },
      clusters: 2,
      initial: BigUint64Array.of(0b0001n, (1n << 63n) - 1n),
      iterations: 1,
    });
    expectSameBits(result.centroids, BigUint64Array.of(0b0001n, (1n << 63n) - 1n));
    expectSameBits(result.labels, Int32Array.of(0, 0));
    expectSameBits(result.counts, Int32Array.of(2, 0));
    expectSameBits(result.iterations, Int32Array.of(1));
  });

  test('bits that are not in use do not count', async () => {
    const masked = (array, bits) => array.map((word) => BigInt.asUintN(bits, word));
    const noisy = { hashes: words(80, 530, 64), initial: words(12, 531, 64) };
    const before = { hashes: noisy.hashes.slice(), initial: noisy.initial.slice() };
    for (const bits of [1, 20, 32, 33, 63]) {
      const rest = { shape, clusters: 6, bits };
      const clean = {
        hashes: masked(noisy.hashes, bits),
        initial: masked(noisy.initial, bits),
      };
      for (const name of ['hashes', 'initial']) {
        const actual = await hammingKMeans({ ...rest, ...clean, [name]: noisy[name] });
        const expected = await hammingKMeans({ ...rest, ...clean });
        for (const part of Object.keys(expected)) expectSameBits(actual[part], expected[part]);
      }
    }
    expect(noisy).toEqual(before);
  });

  test('more clusters than hashes: the surplus stays empty', async () => {
    const { counts, centroids, labels } = await hammingKMeans({ ...options(), clusters: 50 });
    for (const b of [0, 1]) {
      expectAll(counts.subarray(b * 50 + 40, (b + 1) * 50), 0);
      expectAll(centroids.subarray(b * 50 + 40, (b + 1) * 50), 0n);
    }
    expect(labels.every((label) => label >= 0 && label < 40)).toBe(true);
  });

  test('defaults: 10 iterations, seed 0', async () => {
    const explicit = await hammingKMeans({ ...options(), iterations: 10, seed: 0 });
    const implicit = await hammingKMeans(options());
    for (const name of Object.keys(explicit)) expectSameBits(implicit[name], explicit[name]);
  });
});
