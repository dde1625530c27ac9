import { describe, expect, test } from 'vitest';
import { fittedExponent, isApart, median, summarize } from '../../dist/bench/statistics.js';

const around = (lower, upper) => ({ median: (lower + upper) / 2, lower, upper });
const curve = (p) => [16, 64, 1024].map((x) => [x, 0.3 * x ** p]);

describe('summarize', () => {
  test.each([
    [[5], { median: 5, lower: 5, upper: 5 }],
    [[4, 1, 3, 2], { median: 2.5, lower: 1.75, upper: 3.25 }],
    [[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], { median: 5, lower: 2.5, upper: 7.5 }],
    [[100, 20, 3], { median: 20, lower: 11.5, upper: 60 }], // by value, not by text
  ])('%j', (samples, expected) => {
    const before = [...samples];
    expect(summarize(samples)).toEqual(expected);
    expect(samples).toEqual(before);
  });

  test('one outlier moves the median by one place', () => {
    expect(median([1, 1, 1, 2, 1e9])).toBe(1);
  });
});

test('measurements are apart when their middle halves do not meet', () => {
  expect(isApart(around(1, 2), around(2.1, 3))).toBe(true);
  expect(isApart(around(2.1, 3), around(1, 2))).toBe(true);
  expect(isApart(around(1, 2), around(2, 3))).toBe(false);
  expect(isApart(around(1, 4), around(2, 3))).toBe(false);
});

describe('fittedExponent', () => {
  test.each([0, 1, 2, -0.5])('finds x^%d', (p) => {
    expect(fittedExponent(curve(p))).toBeCloseTo(p, 12);
  });

  test('needs two different x', () => {
    expect(fittedExponent([])).toBeUndefined();
    expect(
      fittedExponent([
        [4, 1],
        [4, 2],
      ]),
    ).toBeUndefined();
  });
});
