// How results are compared: first the places of NaN and infinities, then the numbers by their
// relative L2 distance; a failure names the worst index.

import { expect } from 'vitest';

/** The bound for float32 results against the float64 oracle, given the same discrete choices. */
export const FLOAT32_BOUND = 3e-6;
/** The bound for bfloat16 operands with float32 accumulation: one unit in the last place. */
export const BFLOAT16_BOUND = 2 ** -8;

/** A sentence about the first disagreement, or undefined when there is none. */
export function disagreement(actual, expected, bound = FLOAT32_BOUND) {
  if (actual.length !== expected.length) {
    return `length ${actual.length}, expected ${expected.length}`;
  }
  let error = 0;
  let norm = 0;
  let worst = 0;
  for (let i = 0; i < actual.length; ++i) {
    if (!Number.isFinite(actual[i]) || !Number.isFinite(expected[i])) {
      if (!Object.is(actual[i], expected[i])) {
        return `special at ${i}: ${actual[i]}, expected ${expected[i]}`;
      }
      continue;
    }
    const difference = actual[i] - expected[i];
    error += difference * difference;
    norm += expected[i] * expected[i];
    if (Math.abs(difference) > Math.abs(actual[worst] - expected[worst])) worst = i;
  }
  const relative = norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm);
  if (relative <= bound) return undefined;
  return `relative L2 ${relative.toExponential(2)} > ${bound}; worst at ${worst}: ${actual[worst]}, expected ${expected[worst]}`;
}

export function expectClose(actual, expected, bound = FLOAT32_BOUND) {
  expect(disagreement(actual, expected, bound)).toBeUndefined();
}

/** Bit for bit, so that −0 differs from +0 and a NaN equals the same NaN. */
export function expectSameBits(actual, expected) {
  const bytes = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  expect(actual.constructor.name).toBe(expected.constructor.name);
  const same = Buffer.compare(bytes(actual), bytes(expected)) === 0;
  if (!same) {
    const at = actual.findIndex((value, index) => !Object.is(value, expected[index]));
    expect.fail(`bits differ at ${at}: ${actual[at]}, expected ${expected[at]}`);
  }
}

/** Arrays and objects of arrays, bit for bit. */
export function expectSameResult(actual, expected) {
  if (ArrayBuffer.isView(expected)) return expectSameBits(actual, expected);
  expect(Object.keys(actual).toSorted()).toEqual(Object.keys(expected).toSorted());
  for (const name of Object.keys(expected)) expectSameBits(actual[name], expected[name]);
}

export function expectAll(array, value) {
  const at = array.findIndex((entry) => entry !== value);
  if (at >= 0) expect.fail(`element ${at} is ${array[at]}, expected ${value}`);
}

/**
 * Discrete choices (labels, indices) are the expected ones; where float32 and float64 disagree,
 * the two candidates must have one and the same score for float32. score(i, choice) is the score
 * of `choice` at place i. Exact ties are the matter of the tests with whole numbers.
 */
export function expectSameChoices(actual, expected, score) {
  expect(actual.length).toBe(expected.length);
  actual.forEach((choice, i) => {
    if (choice === expected[i]) return;
    const [mine, best] = [score(i, choice), score(i, expected[i])];
    if (Math.abs(mine - best) <= 1e-6 * Math.max(1e-3, Math.abs(best))) return;
    expect.fail(`choice ${choice} (${mine}) at ${i}, expected ${expected[i]} (${best})`);
  });
}
