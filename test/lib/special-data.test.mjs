// Data at the edges of float32: denormal numbers, ±1e30, one-hot and equal rows, NaNs with a
// payload. What the definitions say of them must come out, not something like it.

import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { expectClose, expectSameBits, expectSameResult } from './support/compare.mjs';
import { attentionInputs, normals } from './support/data.mjs';
import { inputArrays, names, operations, resultArrays } from './support/operations.mjs';
import { bothForms, imported, required } from './support/package.mjs';

/** Half the distance between two denormal numbers, the most that one rounding changes. */
const HALF_A_STEP = 2 ** -150;

const KINDS = {
  denormals: (array) => array.map((value) => value * 1e-40),
  oneHot: (array) => array.map((_, i) => (i % 5 === 0 ? 1 : 0)),
  equal: (array) => array.fill(0.375),
  huge: (array) => array.map((value) => (value < 0 ? -1e30 : 1e30)),
};
/** Quiet and signalling ones; the first is that of JavaScript, the second that of x86. */
const NANS = [0x7fc00000, 0xffc00000, 0x7f800001, 0xffc12345, 0x7fffffff, 0xffffffff];

const isFloats = ([, array]) => array instanceof Float32Array;

/** The minimal call with all floats of one kind. */
function callOf(name, kind) {
  const options = operations[name].minimal();
  for (const [input, array] of inputArrays(options).filter(isFloats)) {
    options[input] = KINDS[kind](array.slice());
  }
  return options;
}

function withNan(name, input, bits) {
  const options = operations[name].minimal();
  const { buffer, byteOffset } = options[input];
  new Uint32Array(buffer, byteOffset)[1] = bits;
  return options;
}

/** The same numbers, and NaN in the same places. */
function expectSameNumbers(actual, expected) {
  for (const [output, array] of Object.entries(expected)) {
    const same = Array.from(array, (each, i) => Object.is(each, actual[output][i]));
    expect(same).not.toContain(false);
  }
}

describe.each(names)('%s', (name) => {
  test.each(Object.keys(KINDS))(
    '%s: numbers, or a refusal that says what is wrong',
    async (kind) => {
      let expected;
      try {
        expected = required[`${name}Sync`](callOf(name, kind));
      } catch (error) {
        // Products of ±1e30 leave float32; nothing else may be refused.
        expect([kind, error.code]).toEqual(['huge', 'ERR_NON_FINITE']);
        await expect(imported[name](callOf(name, kind))).rejects.toMatchObject({
          code: error.code,
          message: error.message.replace(`${name}Sync`, name),
        });
        return;
      }
      for (const array of Object.values(resultArrays(expected))) {
        if (array instanceof Float32Array)
          expect(array.every((each) => !Number.isNaN(each))).toBe(true);
      }
      expectSameResult(await imported[name](callOf(name, kind)), expected);
    },
  );

  const floats = inputArrays(operations[name].minimal()).filter(isFloats);

  test.each(floats.map(([input]) => input))('a NaN in %s is one whatever its payload', (input) => {
    for (const precision of ['float32', 'bfloat16']) {
      const results = NANS.map((bits) => {
        const options = { ...withNan(name, input, bits), precision };
        expect(() => required[`${name}Sync`](options)).toThrow(
          expect.objectContaining({ code: 'ERR_NON_FINITE' }),
        );
        return resultArrays(required[`${name}Sync`]({ ...options, nonFinite: 'propagate' }));
      });
      for (const result of results.slice(1)) expectSameNumbers(result, results[0]);
    }
  });
});

describe('attention', () => {
  const attention = bothForms('attention');
  const shape = { batch: 2, heads: 2, queryLength: 19, keyLength: 37, headDim: 20, valueDim: 9 };
  const inputs = () => ({ ...attentionInputs(shape, 7), shape });

  test.each(['denormals', 'oneHot', 'equal'])('%s as queries and keys', async (kind) => {
    const options = inputs();
    for (const input of ['query', 'key']) options[input] = KINDS[kind](options[input]);
    expectClose(await attention(options), oracle.attention(options).output);
  });

  test.each(['oneHot', 'equal', 'huge'])('%s as values', async (kind) => {
    const options = inputs();
    options.value = KINDS[kind](options.value);
    expectClose(await attention(options), oracle.attention(options).output);
  });

  test('denormal values keep what bits they have', async () => {
    const options = inputs();
    options.value = KINDS.denormals(options.value);
    const output = await attention(options);
    const expected = oracle.attention(options).output;
    expect(output.some((value) => value !== 0)).toBe(true);
    // One rounding for each key, of the weight too.
    const most = 4 * shape.keyLength * HALF_A_STEP + 1e-5 * 1e-40;
    expect(output.every((value, i) => Math.abs(value - expected[i]) <= most)).toBe(true);
  });
});

describe('sums and copies', () => {
  const shape = { batch: 2, length: 12, dim: 7 };
  const labels = Int32Array.from({ length: 24 }, (_, i) => (i % 4) - 1);

  test.each(Object.keys(KINDS))('%s: aggregate', async (kind) => {
    const options = { inputs: KINDS[kind](normals(168, 3)), labels, shape, clusters: 3 };
    const output = await bothForms('aggregate')({ ...options, reduce: 'sum' });
    const expected = oracle.aggregate({ ...options, reduce: 'sum' });
    if (kind !== 'denormals') return expectClose(output, expected);
    // Sums of denormal numbers are exact.
    return expectSameBits(output, Float32Array.from(expected));
  });

  test.each(Object.keys(KINDS))('%s: broadcast copies bits', async (kind) => {
    const options = { inputs: KINDS[kind](normals(42, 4)), labels, shape, clusters: 3 };
    const output = await bothForms('broadcast')(options);
    expectSameBits(output, Float32Array.from(oracle.broadcast(options)));
  });

  test.each(Object.keys(KINDS))(
    '%s: topK finds the same, ties to the lower index',
    async (kind) => {
      const options = {
        scores: KINDS[kind](normals(90, 5)),
        shape: { rows: 3, columns: 30 },
        k: 8,
      };
      const { values, indices } = await bothForms('topK')(options);
      const expected = oracle.topK(options);
      expectSameBits(indices, Int32Array.from(expected.indices));
      expectSameBits(values, Float32Array.from(expected.values));
    },
  );
});
