import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseCall, cases } from './support/cases.mjs';
import {
  BFLOAT16_BOUND,
  expectAll,
  expectClose,
  expectSameBits,
  FLOAT32_BOUND,
} from './support/compare.mjs';
import { attentionInputs, indices, integers, normals, roundToBfloat16 } from './support/data.mjs';
import { bothForms, required } from './support/package.mjs';

const modes = ['centroids', 'inputs'].flatMap((normalize) =>
  ['sum', 'mean'].map((aggregate) => ({ normalize, aggregate })),
);

/** Labels are the best centroid up to what float32 can tell apart. */
function expectBestLabels(actual, expected) {
  const wrong = actual.reduce((count, label, i) => count + (label !== expected[i] ? 1 : 0), 0);
  expect(wrong).toBe(0);
}

function expectAgreement(result, expected, toPlain) {
  expectClose(toPlain(result.output), expected.output);
  expectClose(result.masses, expected.masses);
  expect(result.objective).toBeInstanceOf(Float64Array);
  result.objective.forEach((value, b) => {
    const room = FLOAT32_BOUND * (Math.abs(expected.objective[b]) + result.labels.length);
    expect(Math.abs(value - expected.objective[b])).toBeLessThanOrEqual(room);
  });
  expectBestLabels(result.labels, expected.labels);
}

describe('centroidAttention', () => {
  const centroidAttention = bothForms('centroidAttention');

  test.each(cases)('agrees with the oracle in every mode: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 1000);
    for (const mode of modes) {
      const result = await centroidAttention({ ...options, ...mode, details: true });
      expectAgreement(result, oracle.centroidAttention({ ...plain, ...mode }), toPlain);
    }
  });

  test.each(cases)('with weights and neighbors: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 1010);
    const { batch, queryLength, keyLength } = plain.shape;
    // A third of the weights is 0; their inputs hold NaN, which must not be read.
    const weights = normals(batch * keyLength, 1013).map((x) => (x < -0.4 ? 0 : Math.abs(x)));
    const neighborCount = Math.max(1, Math.min(keyLength, entry.topK));
    const neighbors = indices(batch * queryLength * neighborCount, 1014, -1, keyLength - 1);
    for (const mode of modes) {
      for (const more of [
        { weights },
        { neighbors, neighborCount },
        { weights, neighbors, neighborCount },
      ]) {
        const result = await centroidAttention({ ...options, ...mode, ...more, details: true });
        expectAgreement(result, oracle.centroidAttention({ ...plain, ...mode, ...more }), toPlain);
      }
    }
  });

  const shape = { batch: 2, heads: 2, queryLength: 7, keyLength: 45, headDim: 8, valueDim: 5 };
  const inputs = () => ({ ...attentionInputs(shape, 1020), shape });

  test("'inputs' is cross-attention", async () => {
    for (const keyLengths of [undefined, Int32Array.of(45, 13)]) {
      const options = { ...inputs(), keyLengths };
      const exact = required.attentionSync(options);
      expectClose(await centroidAttention({ ...options, normalize: 'inputs' }), exact);
    }
  });

  test('an input of weight 0 is treated like padding', async () => {
    const keyLengths = Int32Array.of(45, 20);
    const weights = new Float32Array(90).fill(1);
    weights.fill(0, 45 + 20);
    const poisoned = inputs();
    for (const name of ['key', 'value']) {
      const columns = name === 'key' ? 8 : 5;
      for (const h of [2, 3]) {
        poisoned[name].fill(NaN, (h * 45 + 20) * columns, (h + 1) * 45 * columns);
      }
    }
    for (const mode of modes) {
      const byWeight = await centroidAttention({ ...poisoned, ...mode, weights, details: true });
      const byLength = await centroidAttention({ ...inputs(), ...mode, keyLengths, details: true });
      for (const name of ['output', 'masses', 'objective']) {
        expectClose(byWeight[name], byLength[name]);
      }
      expectSameBits(byWeight.labels, byLength.labels);
    }
  });

  test('every input gives all of its weight to the centroids', async () => {
    const { masses } = await centroidAttention({ ...inputs(), details: true });
    for (const sequence of [0, 1, 2, 3]) {
      const total = masses.subarray(sequence * 7, (sequence + 1) * 7).reduce((a, b) => a + b, 0);
      expect(total).toBeCloseTo(45, 4);
    }
  });

  test('a neighbor listed twice counts once, −1 is none', async () => {
    const base = Int32Array.from({ length: 2 * 7 * 2 }, (_, i) => (i * 7) % 45);
    const doubled = Int32Array.from({ length: 2 * 7 * 5 }, (_, i) => {
      const list = Math.floor(i / 5) * 2;
      return [base[list], base[list + 1], -1, base[list], -1][i % 5];
    });
    for (const mode of modes) {
      const once = { ...inputs(), ...mode, neighbors: base, neighborCount: 2, details: true };
      const twice = { ...once, neighbors: doubled, neighborCount: 5 };
      const [first, second] = [await centroidAttention(once), await centroidAttention(twice)];
      for (const name of ['output', 'masses', 'objective']) expectClose(first[name], second[name]);
      expectSameBits(first.labels, second.labels);
    }
  });

  test('all neighbors listed is the same as none given', async () => {
    const neighbors = Int32Array.from({ length: 2 * 7 * 45 }, (_, i) => i % 45);
    for (const mode of modes) {
      const options = { ...inputs(), ...mode };
      expectClose(
        await centroidAttention({ ...options, neighbors, neighborCount: 45 }),
        await centroidAttention(options),
      );
    }
  });

  test('labels: a tie goes to the lower centroid', async () => {
    // Whole numbers and scale 1: logits are exact, and equal centroids give equal shares.
    const tied = { ...attentionInputs(shape, 1030, (n, seed) => integers(n, seed, -1, 1)), shape };
    const result = await centroidAttention({ ...tied, scale: 1, details: true });
    expectSameBits(result.labels, oracle.centroidAttention({ ...tied, scale: 1 }).labels);
  });

  test('the mean divides by the mass and 1e-6', async () => {
    // One input of weight 1 and one centroid: the mass is 1, and float32 tells 1e-6 from nothing.
    const single = { batch: 1, heads: 1, queryLength: 1, keyLength: 1, headDim: 2, valueDim: 1 };
    const one = Float32Array.of(1);
    const call = { query: normals(2, 1040), key: normals(2, 1041), value: one, shape: single };
    for (const normalize of ['centroids', 'inputs']) {
      const [mean] = await centroidAttention({ ...call, normalize, aggregate: 'mean' });
      expect(Math.abs(mean - 1 / (1 + 1e-6))).toBeLessThan(1e-7);
    }
  });

  test.each([0, -0.5, 2])('takes scale %d', async (scale) => {
    for (const mode of modes) {
      const options = { ...inputs(), ...mode, scale };
      expectClose(await centroidAttention(options), oracle.centroidAttention(options).output);
    }
  });

  test('a centroid without inputs and an input without centroids give zeros', async () => {
    const neighbors = new Int32Array(2 * 7 * 3).fill(-1);
    for (const mode of modes) {
      const options = { ...inputs(), ...mode, neighbors, neighborCount: 3, details: true };
      const result = await centroidAttention(options);
      expectAll(result.output, 0);
      expectAll(result.masses, 0);
      expectAll(result.objective, 0);
      expectAll(result.labels, -1);
    }
  });

  test('bfloat16 computes on rounded operands', async () => {
    const options = inputs();
    const rounded = Object.fromEntries(
      ['query', 'key', 'value'].map((name) => [name, roundToBfloat16(options[name])]),
    );
    const output = await centroidAttention({ ...options, precision: 'bfloat16' });
    expectClose(
      output,
      oracle.centroidAttention({ ...options, ...rounded }).output,
      BFLOAT16_BOUND,
    );
  });
});
