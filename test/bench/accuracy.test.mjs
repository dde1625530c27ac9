// The rows in double precision and the error metrics against brute force and the oracle of the tests,
// which shares no code with them.

import { describe, expect, test } from 'vitest';
import {
  distanceL1,
  ExactRows,
  largest,
  measureAccuracy,
  recallOf,
  relativeL2,
  sampleRows,
} from '../../dist/bench/accuracy.js';
import { castWeights } from '../../dist/bench/cast-weights.js';
import {
  clusteredQueryGradient,
  exactQueryGradient,
  improvedQueryGradient,
} from '../../dist/bench/query-gradients.js';
import {
  centroidNormalizers,
  centroidWeights,
  clusteredWeights,
  exactWeights,
  improvedWeights,
  weightedValues,
} from '../../dist/bench/weights.js';
import * as oracle from '../lib/oracle/index.mjs';
import { indices as integers, normals } from '../lib/support/data.mjs';

const problem = { batch: 2, heads: 2, queryLength: 11, keyLength: 9, headDim: 5, valueDim: 3 };
const SEQUENCES = 4;
const CLUSTERS = 3;
const TOP_K = 4;
const inputs = {
  problem,
  query: normals(SEQUENCES * 11 * 5, 1),
  key: normals(SEQUENCES * 9 * 5, 2),
  value: normals(SEQUENCES * 9 * 3, 3),
};
const options = { ...inputs, shape: problem, clusters: CLUSTERS };
const labels = integers(SEQUENCES * 11, 4, 0, CLUSTERS - 1);
const keys = oracle.chooseTopKeys({ ...options, labels, topK: TOP_K });
const lists = { indices: keys, clusters: CLUSTERS, topK: TOP_K };
const rows = sampleRows(SEQUENCES, 11, Infinity, 0);

function expectClose(actual, expected) {
  expect(actual.length).toBe(expected.length);
  actual.forEach((x, i) => expect(Math.abs(x - expected[i])).toBeLessThan(1e-9));
}

describe('rows of the attention matrices', () => {
  const methods = {
    exact: [(row) => exactWeights(inputs, row), oracle.attention, {}],
    clustered: [
      (row) => clusteredWeights(inputs, labels, row),
      oracle.clusteredAttention,
      { labels },
    ],
    improved: [
      (row) => improvedWeights(inputs, labels, lists, row),
      oracle.clusteredAttention,
      { labels, indices: keys },
    ],
  };

  test.each(Object.entries(methods))('%s', (_, [weights, operation, more]) => {
    const { output } = operation({ ...options, ...more });
    for (const row of rows) {
      const own = weights(row);
      expect(own.reduce((a, b) => a + b)).toBeCloseTo(1, 12);
      const place = (row.sequence * 11 + row.query) * 3;
      expectClose(weightedValues(inputs, row.sequence, own), output.subarray(place, place + 3));
    }
  });

  test('centroid', () => {
    const query = normals(SEQUENCES * 4 * 5, 5);
    const shape = { ...problem, queryLength: 4 };
    const { output } = oracle.centroidAttention({ ...options, query, shape });
    for (let sequence = 0; sequence < SEQUENCES; ++sequence) {
      const normalizers = centroidNormalizers(inputs, query, 4, sequence);
      for (let j = 0; j < 4; ++j) {
        const place = sequence * 4 + j;
        const centroid = query.subarray(place * 5, place * 5 + 5);
        const own = centroidWeights(inputs, centroid, normalizers, sequence);
        expectClose(
          weightedValues(inputs, sequence, own),
          output.subarray(place * 3, place * 3 + 3),
        );
      }
    }
  });

  test('cast', () => {
    const self = { ...problem, queryLength: 9 };
    const tensors = { ...inputs, problem: self, query: normals(SEQUENCES * 9 * 5, 6) };
    const state = {
      surrogates: normals(2 * CLUSTERS * 5, 7),
      gate: normals(2 * 9, 8),
      clusters: CLUSTERS,
      clusterSize: 4,
      indices: Int32Array.of(
        0,
        3,
        5,
        -1,
        1,
        2,
        3,
        8,
        4,
        5,
        6,
        0,
        8,
        7,
        6,
        5,
        1,
        2,
        3,
        4,
        0,
        8,
        2,
        1,
      ),
    };
    const { output } = oracle.castAttention({ ...tensors, ...state, shape: self });
    for (const row of sampleRows(SEQUENCES, 9, Infinity, 0)) {
      const place = (row.sequence * 9 + row.query) * 3;
      const own = weightedValues(tensors, row.sequence, castWeights(tensors, state, row));
      expectClose(own, output.subarray(place, place + 3));
    }
  });
});

describe('gradients by the query against differences', () => {
  const gradOutput = normals(SEQUENCES * 11 * 3, 9);
  const more = { clustered: { labels }, improved: { labels, indices: keys } };
  const methods = {
    exact: [(row) => exactQueryGradient(inputs, gradOutput, row), oracle.attention, {}],
    clustered: [
      (row) => clusteredQueryGradient(inputs, labels, gradOutput, row),
      oracle.clusteredAttention,
      more.clustered,
    ],
    improved: [
      (row) => improvedQueryGradient(inputs, labels, lists, gradOutput, row),
      oracle.clusteredAttention,
      more.improved,
    ],
  };

  test.each(Object.entries(methods))('%s', (_, [gradient, operation, choices]) => {
    const query = Float64Array.from(inputs.query);
    const objective = () => {
      const { output } = operation({ ...options, ...choices, query });
      return output.reduce((sum, x, i) => sum + x * gradOutput[i], 0);
    };
    const row = { sequence: 2, query: 5 };
    const place = (row.sequence * 11 + row.query) * 5;
    const numeric = Array.from({ length: 5 }, (__, d) => {
      const middle = query[place + d];
      query[place + d] = middle + 1e-5;
      const above = objective();
      query[place + d] = middle - 1e-5;
      const below = objective();
      query[place + d] = middle;
      return (above - below) / 2e-5;
    });
    gradient(row).forEach((x, d) => expect(x).toBeCloseTo(numeric[d], 7));
  });
});

describe('metrics', () => {
  test('relativeL2 counts all rows together', () => {
    expect(
      relativeL2([
        [
          [1, 2],
          [1, 0],
        ],
        [[3], [2]],
      ]),
    ).toBeCloseTo(Math.sqrt(5 / 5), 12);
    expect(
      relativeL2([
        [
          [3, 4],
          [0, 0],
        ],
      ]),
    ).toBe(5);
    expect(relativeL2([[[NaN], [1]]])).toBeNaN();
  });

  test('distanceL1', () => {
    expect(distanceL1(Float64Array.of(0.5, 0.5, 0), Float64Array.of(0, 0.5, 0.5))).toBe(1);
  });

  test('largest: best first, of equals the lower place', () => {
    const weights = Float64Array.of(1, 3, 2, 3, 0, 2);
    expect(largest(weights, 1)).toEqual([1]);
    expect(largest(weights, 4)).toEqual([1, 3, 2, 5]);
    expect(largest(weights, 9)).toEqual([1, 3, 2, 5, 0, 4]);
  });

  test.each([1, 5, 20])('largest of random weights, k = %d', (k) => {
    const weights = Float64Array.from(integers(60, k, 0, 15));
    const order = Array.from(weights.keys()).toSorted((a, b) => weights[b] - weights[a] || a - b);
    expect(largest(weights, k)).toEqual(order.slice(0, k));
  });

  test('recall', () => {
    const exact = Float64Array.of(4, 3, 2, 1, 0);
    expect(recallOf(exact, exact, 3)).toBe(1);
    expect(recallOf(Float64Array.of(0, 1, 2, 3, 4), exact, 2)).toBe(0);
    expect(recallOf(Float64Array.of(0, 4, 3, 2, 1), exact, 2)).toBe(0.5);
  });

  test('together: exact attention has no error, another row has', () => {
    const exact = new ExactRows(inputs);
    const samples = rows.map((row) => {
      const weights = exactWeights(inputs, row);
      const own = weightedValues(inputs, row.sequence, weights);
      return { row, weights, own, output: Float32Array.from(own) };
    });
    const right = measureAccuracy(samples, exact, 3);
    expect(right).toMatchObject({ rows: rows.length, recall: 1, weights: 0, k: 3 });
    expect(right.rounding).toBeLessThan(1e-7);
    expect(right.error).toBe(right.rounding);
    const [first, second] = samples;
    const swapped = [{ ...first, weights: second.weights, own: second.own, output: second.own }];
    const wrong = measureAccuracy(swapped, exact, 3);
    expect(wrong.rounding).toBe(0);
    expect(wrong.error).toBeCloseTo(relativeL2([[second.own, first.own]]), 12);
    expect(wrong.weights).toBeCloseTo(distanceL1(second.weights, first.weights), 12);
  });

  test('a method that stands for nothing has rounding alone', () => {
    const sample = { row: rows[0], own: Float64Array.of(1), output: [1] };
    expect(measureAccuracy([sample], new ExactRows(inputs), 3)).toEqual({ rows: 1, rounding: 0 });
  });

  test('sampled rows are different, in order, and the same every time', () => {
    const sample = sampleRows(8, 4096, 64, 5);
    expect(sample).toEqual(sampleRows(8, 4096, 64, 5));
    expect(sample).not.toEqual(sampleRows(8, 4096, 64, 6));
    const places = sample.map(({ sequence, query }) => sequence * 4096 + query);
    expect(new Set(places).size).toBe(64);
    expect(places).toEqual(places.toSorted((a, b) => a - b));
    expect(new Set(sample.map(({ sequence }) => sequence)).size).toBe(8);
    expect(sampleRows(2, 3, 64, 0)).toHaveLength(6);
  });
});
