import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseCall, cases } from './support/cases.mjs';
import { BFLOAT16_BOUND, expectAll, expectClose, expectSameBits } from './support/compare.mjs';
import { attentionInputs, integers, roundToBfloat16 } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

describe('attention', () => {
  const attention = bothForms('attention');

  test.each(cases)('agrees with the oracle: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 100);
    for (const causal of [false, true]) {
      const result = await attention({ ...options, causal, details: true });
      const expected = oracle.attention({ ...plain, causal });
      expectClose(toPlain(result.output), expected.output);
      expectClose(result.logsumexp, expected.logsumexp);
    }
  });

  const shape = { batch: 2, heads: 3, queryLength: 29, keyLength: 41, headDim: 16, valueDim: 8 };

  test.each([0, -0.7, 0.01, 2])('takes scale %d', async (scale) => {
    const options = { ...attentionInputs(shape, 110), shape, scale };
    const { output, logsumexp } = await attention({ ...options, details: true });
    const expected = oracle.attention(options);
    expectClose(output, expected.output);
    expectClose(logsumexp, expected.logsumexp);
  });

  test('survives logits that overflow exp()', async () => {
    const options = { ...attentionInputs(shape, 120, integers), shape, scale: 30 };
    const { output, logsumexp } = await attention({ ...options, details: true });
    const expected = oracle.attention(options);
    // A logit z is a float32: its rounding alone moves exp(z) by |z| units in the last place.
    expectClose(output, expected.output, 1e-3);
    expectClose(logsumexp, expected.logsumexp);
  });

  test('defaults: keyLength = queryLength, valueDim = headDim, no details', async () => {
    const square = { batch: 1, heads: 2, queryLength: 13, headDim: 6 };
    const options = { ...attentionInputs(square, 130), shape: square };
    const output = await attention(options);
    expect(output).toBeInstanceOf(Float32Array);
    expectClose(output, oracle.attention(options).output);
    expectSameBits(
      output,
      await attention({ ...options, scale: 1 / Math.sqrt(6), details: false }),
    );
  });

  test('a row of weights sums to one', async () => {
    const options = { ...attentionInputs(shape, 140), shape };
    options.value.fill(1);
    for (const weight of await attention(options)) expect(weight).toBeCloseTo(1, 6);
  });

  test('permuting the keys with their values changes nothing but rounding', async () => {
    const options = { ...attentionInputs(shape, 150), shape };
    const reversed = { ...options, key: options.key.slice(), value: options.value.slice() };
    const { keyLength, headDim, valueDim } = shape;
    for (let sequence = 0; sequence < 6; ++sequence) {
      for (let s = 0; s < keyLength; ++s) {
        const from = sequence * keyLength + s;
        const to = sequence * keyLength + keyLength - 1 - s;
        const row = (array, at, columns) => array.subarray(at * columns, (at + 1) * columns);
        reversed.key.set(row(options.key, from, headDim), to * headDim);
        reversed.value.set(row(options.value, from, valueDim), to * valueDim);
      }
    }
    expectClose(await attention(reversed), await attention(options));
  });

  test('bfloat16 rounds the operands and accumulates in float32', async () => {
    const options = { ...attentionInputs(shape, 160), shape };
    const rounded = Object.fromEntries(
      ['query', 'key', 'value'].map((name) => [name, roundToBfloat16(options[name])]),
    );
    const output = await attention({ ...options, precision: 'bfloat16' });
    expectClose(output, oracle.attention({ ...options, ...rounded }).output, BFLOAT16_BOUND);
  });

  test('a causal row without keys is 0 with log-sum-exp −Infinity', async () => {
    const tall = { batch: 1, heads: 1, queryLength: 9, keyLength: 4, headDim: 3 };
    const options = { ...attentionInputs(tall, 170), shape: tall, causal: true, details: true };
    const { output, logsumexp } = await attention(options);
    expectAll(output.subarray(0, 5 * 3), 0);
    expectAll(logsumexp.subarray(0, 5), -Infinity);
    expect(logsumexp[5]).toBeGreaterThan(-Infinity);
  });
});
