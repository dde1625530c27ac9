import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseVectors, cases } from './support/cases.mjs';
import {
  expectAll,
  expectClose,
  expectSameBits,
  expectSameChoices,
  expectSameResult,
} from './support/compare.mjs';
import { integers, normals } from './support/data.mjs';
import { bothForms } from './support/package.mjs';
import { plantedQueries, samePartition } from './support/planted.mjs';

const similarities = ['cosine', 'dot', 'euclidean'];

describe('centroidPool', () => {
  const centroidPool = bothForms('centroidPool');

  /** The whole result by the oracle; start(rows, count, b) gives the first centroids. */
  function expectedResult(options, start) {
    const { inputs, shape, centroids, lengths } = options;
    const { batch, length, dim } = shape;
    const output = new Float64Array(batch * centroids * dim);
    const labels = new Int32Array(batch * length).fill(-1);
    const masses = new Float64Array(batch * centroids);
    const scores = [];
    for (let b = 0; b < batch; ++b) {
      const real = lengths?.[b] ?? length;
      if (real === 0) continue;
      const rows = oracle.rowsAt(inputs, b * length, real, dim);
      const first = start(rows, Math.min(centroids, real), b);
      const result = oracle.centroidPool(rows, first, options);
      result.centroids.forEach((row, j) => output.set(row, (b * centroids + j) * dim));
      labels.set(result.labels, b * length);
      masses.set(result.masses, b * centroids);
      scores[b] = result.scores;
    }
    const scoreOf = (i, label) => scores[Math.floor(i / length)][label]?.[i % length];
    return { output, labels, masses, scoreOf };
  }

  async function expectAgreement(options, start) {
    const actual = await centroidPool({ ...options, details: true });
    const expected = expectedResult(options, start);
    expectClose(actual.output, expected.output);
    expectClose(actual.masses, expected.masses);
    expectSameChoices(actual.labels, expected.labels, expected.scoreOf);
    return actual;
  }

  test.each(cases)('agrees with the oracle for every start: $name', async (entry) => {
    const options = { ...caseVectors(entry, 1100), centroids: entry.clusters };
    const { batch, dim } = options.shape;
    const given = normals(batch * entry.clusters * dim, 1101);
    const givenStart = (_, count, b) => oracle.rowsAt(given, b * entry.clusters, count, dim);
    for (const similarity of similarities) {
      // Few steps and a mild temperature: a soft assignment, in which rounding cannot grow.
      const call = { ...options, similarity, iterations: 3, temperature: 2 };
      await expectAgreement(call, oracle.strideStart);
      await expectAgreement({ ...call, initial: 'farthest' }, (rows, count) =>
        oracle.farthestStart(rows, count, similarity),
      );
      await expectAgreement({ ...call, initial: given }, givenStart);
      const drawn = await centroidPool({ ...call, initial: 'kmeans++', seed: 3, iterations: 0 });
      await expectAgreement({ ...call, initial: 'kmeans++', seed: 3 }, (_, count, b) =>
        oracle.rowsAt(drawn, b * entry.clusters, count, dim),
      );
    }
  });

  const shape = { batch: 2, length: 50, dim: 6 };
  const options = () => ({ inputs: normals(2 * 50 * 6, 1110), shape, centroids: 4 });

  test('defaults: stride, 8 iterations, cosine at 0.1, dot and euclidean at 1, seed 0', async () => {
    const implicit = await centroidPool(options());
    const explicit = { initial: 'stride', iterations: 8, similarity: 'cosine', temperature: 0.1 };
    expectSameBits(implicit, await centroidPool({ ...options(), ...explicit, seed: 0 }));
    for (const similarity of ['dot', 'euclidean']) {
      const call = { ...options(), similarity };
      expectSameBits(await centroidPool(call), await centroidPool({ ...call, temperature: 1 }));
    }
  });

  test.each(similarities)(
    'temperature 0 is the hard assignment, ties to the lower: %s',
    async (similarity) => {
      const initial = integers(3 * 4, 1120, -1, 1);
      const start = () => oracle.rowsAt(initial, 0, 3, 4);
      const call = {
        inputs: integers(90 * 4, 1121, -1, 1),
        shape: { batch: 1, length: 90, dim: 4 },
        centroids: 3,
        similarity,
        temperature: 0,
        initial,
      };
      if (similarity !== 'cosine') await expectAgreement({ ...call, iterations: 0 }, start);
      await expectAgreement({ ...call, inputs: normals(90 * 4, 1122), iterations: 5 }, start);
    },
  );

  test('a temperature whose factor leaves float32 is 0', async () => {
    const call = {
      inputs: normals(90 * 4, 1123),
      shape: { batch: 1, length: 90, dim: 4 },
      centroids: 3,
      similarity: 'euclidean',
    };
    const hard = await centroidPool({ ...call, temperature: 0 });
    for (const temperature of [1e-320, 2e-39, 3.2e-39, 4.2e-39]) {
      expectSameBits(await centroidPool({ ...call, temperature }), hard);
    }
  });

  test('a centroid without mass keeps its value', async () => {
    const initial = Float32Array.of(0, 0, 50, 50);
    const call = {
      inputs: normals(40, 1130),
      shape: { batch: 1, length: 20, dim: 2 },
      centroids: 2,
      initial,
      similarity: 'euclidean',
    };
    for (const temperature of [0, 1e-3]) {
      const { output, masses } = await centroidPool({ ...call, temperature, details: true });
      expectSameBits(output.slice(2), initial.slice(2));
      expect(masses[1]).toBe(0);
    }
  });

  test('iterations: 0 returns the start with its labels and masses', async () => {
    const { output } = await centroidPool({ ...options(), iterations: 0, details: true });
    const { output: expected } = expectedResult(
      { ...options(), iterations: 0 },
      oracle.strideStart,
    );
    expectClose(output, expected);
  });

  test('recovers planted groups', async () => {
    const { query, planted } = plantedQueries({ clusters: 5, perCluster: 12, dim: 8 });
    const call = { inputs: query, shape: { batch: 1, length: 60, dim: 8 }, centroids: 5 };
    for (const similarity of ['cosine', 'euclidean']) {
      const { labels } = await centroidPool({
        ...call,
        similarity,
        initial: 'farthest',
        details: true,
      });
      expect(samePartition(labels, planted)).toBe(true);
    }
  });

  test('more centroids than rows: the surplus is zero without mass', async () => {
    const call = { ...options(), centroids: 60, lengths: Int32Array.of(50, 2), details: true };
    const { output, masses } = await centroidPool(call);
    expectAll(output.subarray(50 * 6, 60 * 6), 0);
    expectAll(masses.subarray(50, 60), 0);
    expectAll(output.subarray(62 * 6), 0);
    expectAll(masses.subarray(62), 0);
  });

  test('the same call twice gives the same bits', async () => {
    const call = { ...options(), initial: 'kmeans++', seed: 12, details: true };
    expectSameResult(await centroidPool(call), await centroidPool(call));
  });
});
