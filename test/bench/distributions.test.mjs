import { describe, expect, test } from 'vitest';
import { DISTRIBUTIONS, drawTensors } from '../../dist/bench/distributions.js';
import { exactWeights } from '../../dist/bench/weights.js';

const problem = {
  batch: 1,
  heads: 2,
  queryLength: 512,
  keyLength: 512,
  headDim: 32,
  valueDim: 16,
};

describe.each(DISTRIBUTIONS)('%s', (distribution) => {
  const tensors = drawTensors(distribution, problem, 7);

  test('has the asked shapes, and elements of unit variance around 0', () => {
    expect(tensors.query).toHaveLength(2 * 512 * 32);
    expect(tensors.key).toHaveLength(2 * 512 * 32);
    expect(tensors.value).toHaveLength(2 * 512 * 16);
    for (const array of Object.values(tensors)) {
      const mean = array.reduce((sum, x) => sum + x, 0) / array.length;
      const variance = array.reduce((sum, x) => sum + (x - mean) ** 2, 0) / array.length;
      expect(Math.abs(mean)).toBeLessThan(0.2);
      expect(variance).toBeGreaterThan(0.75);
      expect(variance).toBeLessThan(1.25);
    }
  });

  test('comes from its seed alone', () => {
    expect(drawTensors(distribution, problem, 7)).toEqual(tensors);
    expect(drawTensors(distribution, problem, 8).query).not.toEqual(tensors.query);
  });
});

/** Mean over some rows of a number of their exact attention. */
function overRows(distribution, of) {
  const inputs = { problem, ...drawTensors(distribution, problem, 7) };
  const queries = [10, 100, 200, 300, 400, 500];
  const numbers = queries.map((query) => of(exactWeights(inputs, { sequence: 1, query }), query));
  return numbers.reduce((a, b) => a + b) / numbers.length;
}

/** Weight of the neighbours, and of the sixteen heaviest keys. */
const near = (weights, query) =>
  weights.reduce((sum, w, s) => sum + (Math.abs(s - query) <= 8 ? w : 0), 0);
const firstSixteen = (weights) =>
  weights
    .toSorted((a, b) => b - a)
    .slice(0, 16)
    .reduce((a, b) => a + b);

test('local data attend near the query, Gaussian ones anywhere', () => {
  expect(overRows('local', near)).toBeGreaterThan(0.3);
  expect(overRows('gaussian', near)).toBeLessThan(0.1);
});

test('mixtures attend to the few keys of a group', () => {
  expect(overRows('mixture', firstSixteen)).toBeGreaterThan(0.4);
  expect(overRows('gaussian', firstSixteen)).toBeLessThan(0.4);
});
