import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseVectors, cases } from './support/cases.mjs';
import { expectAll, expectClose, expectSameBits, expectSameResult } from './support/compare.mjs';
import { integers, normals } from './support/data.mjs';
import { bothForms } from './support/package.mjs';
import { plantedQueries, samePartition } from './support/planted.mjs';

describe('kMeans', () => {
  const kMeans = bothForms('kMeans');

  /** The result by the oracle from given starts (batch,C,dim). */
  function expectedResult(options, start) {
    const { inputs, shape, clusters, lengths } = options;
    const { batch, length, dim } = shape;
    const labels = new Int32Array(batch * length).fill(-1);
    const centroids = new Float64Array(batch * clusters * dim);
    const inertia = new Float64Array(batch);
    const iterations = new Int32Array(batch);
    for (let b = 0; b < batch; ++b) {
      const real = lengths?.[b] ?? length;
      const rows = oracle.rowsAt(inputs, b * length, real, dim);
      const initial = oracle.rowsAt(start, b * clusters, Math.min(clusters, real), dim);
      const result = oracle.kMeans(rows, initial, options);
      labels.set(result.labels, b * length);
      result.centroids.forEach((row, j) => centroids.set(row, (b * clusters + j) * dim));
      inertia[b] = result.inertia;
      iterations[b] = result.updates;
    }
    const counts = oracle.countLabels(labels, batch, clusters);
    return { centroids, labels, counts, inertia, iterations };
  }

  async function expectAgreement(options, start) {
    const actual = await kMeans(options);
    const expected = expectedResult(options, start);
    expect(Object.keys(actual).toSorted()).toEqual(Object.keys(expected).toSorted());
    for (const name of ['labels', 'counts', 'iterations']) {
      if (options.shape.length > 0) expectSameBits(actual[name], expected[name]);
    }
    expectClose(actual.centroids, expected.centroids);
    expect(actual.inertia).toBeInstanceOf(Float64Array);
    // A row that is its own centroid has a distance of 0, up to rounding of the coordinates.
    const floor = 1e-9 * options.inputs.length;
    actual.inertia.forEach((sum, b) => {
      expect(Math.abs(sum - expected.inertia[b])).toBeLessThanOrEqual(
        1e-5 * expected.inertia[b] + floor,
      );
    });
    return actual;
  }

  const startOf = async (options) => (await kMeans({ ...options, iterations: 0 })).centroids;

  test.each(cases)('agrees with the oracle: $name', async (entry) => {
    for (const metric of ['euclidean', 'cosine']) {
      const options = { ...caseVectors(entry, 600), clusters: entry.clusters, metric };
      const { batch, dim } = options.shape;
      const initial = normals(batch * entry.clusters * dim, 601);
      const limits = { iterations: 6, tolerance: 0 };
      await expectAgreement({ ...options, ...limits, initial }, initial);
      await expectAgreement(
        { ...options, ...limits, seed: 4 },
        await startOf({ ...options, seed: 4 }),
      );
    }
  });

  const shape = { batch: 2, length: 60, dim: 5 };
  const options = () => ({ inputs: normals(2 * 60 * 5, 610), shape, clusters: 6 });

  test('stops by tolerance as well as at the fixpoint', async () => {
    const initial = normals(2 * 6 * 5, 611);
    const loose = await expectAgreement({ ...options(), initial, tolerance: 0.05 }, initial);
    const exact = await expectAgreement({ ...options(), initial, tolerance: 0 }, initial);
    loose.iterations.forEach((count, b) => expect(count).toBeLessThanOrEqual(exact.iterations[b]));
    const implicit = await kMeans({ ...options(), initial });
    const explicit = { ...options(), initial, tolerance: 1e-4, iterations: 300 };
    expectSameResult(implicit, await kMeans(explicit));
  });

  test('k-means++ starts at distinct rows of the inputs and prefers far ones', async () => {
    for (const seed of [0, 1, 2]) {
      const start = await startOf({ ...options(), seed });
      const { inputs } = options();
      for (let b = 0; b < 2; ++b) {
        const rows = new Set(oracle.rowsAt(inputs, b * 60, 60, 5).map(String));
        const chosen = oracle.rowsAt(start, b * 6, 6, 5).map(String);
        expect(new Set(chosen).size).toBe(6);
        expect(chosen.every((row) => rows.has(row))).toBe(true);
      }
    }
    const { query, planted } = plantedQueries({ clusters: 8, perCluster: 20, dim: 6 });
    let recovered = 0;
    for (let seed = 0; seed < 5; ++seed) {
      const planned = {
        inputs: query,
        shape: { batch: 1, length: 160, dim: 6 },
        clusters: 8,
        seed,
      };
      if (samePartition((await kMeans(planned)).labels, planted)) recovered += 1;
    }
    expect(recovered).toBeGreaterThanOrEqual(3);
  });

  test('equal rows: the lowest index not yet chosen starts the next cluster', async () => {
    const inputs = new Float32Array(6 * 2).fill(3);
    const same = { inputs, shape: { batch: 1, length: 6, dim: 2 }, clusters: 3 };
    const { labels, counts, inertia } = await kMeans(same);
    expectAll(labels, 0);
    expectSameBits(counts, Int32Array.of(6, 0, 0));
    expect(inertia[0]).toBe(0);
  });

  test('a row between two centroids goes to the lower one', async () => {
    const inputs = integers(300 * 3, 620, -2, 2);
    const initial = integers(7 * 3, 621, -2, 2);
    const tied = { inputs, shape: { batch: 1, length: 300, dim: 3 }, clusters: 7, initial };
    await expectAgreement({ ...tied, iterations: 0 }, initial);
  });

  test('an empty cluster keeps its centroid', async () => {
    const initial = Float32Array.from([0, 0, 100, 100]);
    const inputs = normals(20, 630);
    const call = { inputs, shape: { batch: 1, length: 10, dim: 2 }, clusters: 2, initial };
    const { centroids, counts } = await kMeans(call);
    expectSameBits(counts, Int32Array.of(10, 0));
    expectSameBits(centroids.slice(2), Float32Array.of(100, 100));
  });

  test('cosine looks at directions only; a zero row has cosine 0 with everything', async () => {
    const inputs = normals(40 * 4, 640);
    inputs.fill(0, 8, 12);
    const initial = normals(3 * 4, 641);
    const call = {
      shape: { batch: 1, length: 40, dim: 4 },
      clusters: 3,
      initial,
      metric: 'cosine',
    };
    const result = await expectAgreement({ ...call, inputs }, initial);
    const powers = inputs.map((x, i) => x * 2 ** (Math.floor(i / 4) % 5));
    const scaled = await kMeans({ ...call, inputs: powers });
    expectSameBits(scaled.labels, result.labels);
    expectClose(scaled.centroids, result.centroids);
  });

  test('more clusters than rows: one row each, the surplus empty and zero', async () => {
    const call = { ...options(), clusters: 70, lengths: Int32Array.of(60, 3) };
    const { counts, centroids, inertia } = await kMeans(call);
    expectAll(counts.subarray(0, 60), 1);
    expectAll(counts.subarray(60, 70), 0);
    expectAll(counts.subarray(70, 73), 1);
    expectAll(centroids.subarray(60 * 5, 70 * 5), 0);
    expectAll(centroids.subarray(73 * 5), 0);
    inertia.forEach((sum) => expect(sum).toBeLessThan(1e-9));
  });
});
