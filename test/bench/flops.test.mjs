// The counts of docs/benchmark.md against products counted one by one.

import { describe, expect, test } from 'vitest';
import { countFlops } from '../../dist/bench/flops.js';

const problem = { batch: 2, heads: 3, queryLength: 7, keyLength: 5, headDim: 4, valueDim: 6 };
const sequences = 6;

/** A matrix product of these sizes, counted by its loops. */
function product(rows, depth, columns) {
  let count = 0;
  for (let i = 0; i < rows; ++i) {
    for (let j = 0; j < columns; ++j) for (let k = 0; k < depth; ++k) count += 2;
  }
  return count;
}

/** Q Kᵀ and A V; backwards Q Kᵀ again, dO Vᵀ, dQ, dK, dV. */
const forward = (rows, keys) => product(rows, 4, keys) + product(rows, keys, 6);
const backward = (rows, keys) =>
  product(rows, 4, keys) +
  product(rows, 6, keys) +
  product(rows, keys, 4) +
  product(keys, rows, 4) +
  product(keys, rows, 6);

describe('countFlops', () => {
  test('exact', () => {
    expect(countFlops('exact', problem, {}, false)).toBe(sequences * forward(7, 5));
    const both = forward(7, 5) + backward(7, 5);
    expect(countFlops('exact', problem, {}, true)).toBe(sequences * both);
  });

  test('clustered: hashes and the mean queries', () => {
    const hashes = product(7, 4, 63);
    const count = countFlops('clustered', problem, { clusters: 3 }, false);
    expect(count).toBe(sequences * (hashes + forward(3, 5)));
    expect(countFlops('clustered', problem, { clusters: 3, bits: 10 }, false)).toBe(
      sequences * (product(7, 4, 10) + forward(3, 5)),
    );
  });

  test('clustered, euclidean: an assignment more than updates', () => {
    const parameters = { clusters: 3, grouping: 'euclidean', iterations: 2 };
    expect(countFlops('clustered', problem, parameters, false)).toBe(
      sequences * (3 * product(7, 4, 3) + forward(3, 5)),
    );
  });

  test('more clusters than queries are clamped', () => {
    expect(countFlops('clustered', problem, { clusters: 100 }, false)).toBe(
      countFlops('clustered', problem, { clusters: 7 }, false),
    );
  });

  test('improved: the top keys for every query, clamped', () => {
    const parameters = { clusters: 3, topK: 2 };
    const plain = countFlops('clustered', problem, parameters, false);
    expect(countFlops('improved', problem, parameters, false)).toBe(
      plain + sequences * forward(7, 2),
    );
    expect(countFlops('improved', problem, { clusters: 3, topK: 9 }, false)).toBe(
      plain + sequences * forward(7, 5),
    );
    const plainBoth = countFlops('clustered', problem, parameters, true);
    expect(countFlops('improved', problem, parameters, true)).toBe(
      plainBoth + sequences * (forward(7, 2) + backward(7, 2)),
    );
  });

  test('centroid', () => {
    expect(countFlops('centroid', problem, { centroids: 3 }, false)).toBe(
      sequences * forward(3, 5),
    );
  });

  test('cast: scores of queries and keys, within, summaries, combination', () => {
    const self = { ...problem, keyLength: 7 };
    const scores = 2 * product(7, 4, 2);
    const within = 2 * forward(4, 4);
    const summaries = 2 * product(1, 4, 6);
    const combination = product(7, 2, 6);
    expect(countFlops('cast', self, { clusters: 2, clusterSize: 4 }, false)).toBe(
      sequences * (scores + within + summaries + combination),
    );
  });
});
