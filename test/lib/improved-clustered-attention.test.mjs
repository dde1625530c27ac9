import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseCall, cases } from './support/cases.mjs';
import {
  BFLOAT16_BOUND,
  expectClose,
  expectSameBits,
  expectSameChoices,
} from './support/compare.mjs';
import { attentionInputs, indices, integers, roundToBfloat16 } from './support/data.mjs';
import { bothForms, required } from './support/package.mjs';

/** The chosen keys are the best by q̄·k, best first. */
function expectBestKeys(actual, options) {
  const expected = oracle.chooseTopKeys(options);
  const scores = oracle.clusterScores(options);
  const k = expected.length / scores.length;
  expectSameChoices(actual, expected, (i, key) => scores[Math.floor(i / k)]?.[key]);
}

describe('improvedClusteredAttention', () => {
  const improved = bothForms('improvedClusteredAttention');

  test.each(cases)('agrees with the oracle for its own choices: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 300);
    const { clusters, topK, bits } = entry;
    for (const grouping of ['hamming', 'euclidean']) {
      const call = { ...options, grouping, clusters, topK, bits, details: true };
      const { output, labels, counts, indices: chosen } = await improved(call);
      const { batch, heads } = plain.shape;
      expectSameBits(counts, oracle.countLabels(labels, batch * heads, clusters));
      expectBestKeys(chosen, { ...plain, clusters, topK, labels });
      const given = { ...plain, clusters, labels, indices: chosen };
      expectClose(toPlain(output), oracle.clusteredAttention(given).output);
    }
  });

  test.each(cases)('agrees with the oracle for given labels: $name', async (entry) => {
    const { options, plain, toPlain } = caseCall(entry, 310);
    const { batch, heads, queryLength } = plain.shape;
    const { topK } = entry;
    const clusters = entry.clusters + 2;
    const labels = indices(batch * heads * queryLength, 311, -1, clusters - 2);
    const call = { ...options, clusters, topK, labels, details: true };
    const { output, indices: chosen } = await improved(call);
    expectBestKeys(chosen, { ...plain, clusters, topK, labels });
    const given = { ...plain, clusters, labels, indices: chosen };
    expectClose(toPlain(output), oracle.clusteredAttention(given).output);
  });

  const shape = { batch: 2, heads: 2, queryLength: 41, keyLength: 53, headDim: 12, valueDim: 9 };
  const inputs = () => ({ ...attentionInputs(shape, 320), shape, clusters: 5 });

  test('k at or past S gives exact attention', async () => {
    const keyLengths = Int32Array.of(53, 20);
    for (const topK of [53, 54, 5000]) {
      const options = { ...inputs(), keyLengths, topK };
      expectClose(await improved(options), oracle.attention(options).output);
    }
  });

  test('k past S is the clamped call, indices included', async () => {
    const past = await improved({ ...inputs(), topK: 100, details: true });
    const clamped = await improved({ ...inputs(), topK: 53, details: true });
    expect(past.indices.length).toBe(2 * 2 * 5 * 53);
    for (const name of Object.keys(clamped)) expectSameBits(past[name], clamped[name]);
  });

  test('topK defaults to 32', async () => {
    expectSameBits(await improved(inputs()), await improved({ ...inputs(), topK: 32 }));
  });

  test.each([0, -0.5, 1.5])('scale %d does not change which keys are chosen', async (scale) => {
    const options = { ...inputs(), topK: 7 };
    const {
      output,
      labels,
      indices: chosen,
    } = await improved({ ...options, scale, details: true });
    expectSameBits(chosen, (await improved({ ...options, details: true })).indices);
    const given = { ...options, scale, labels, indices: chosen };
    expectClose(output, oracle.clusteredAttention(given).output);
  });

  test('ties among keys go to the lower index', async () => {
    // Whole numbers and clusters of 1, 2 and 4 queries: means and scores are exact.
    const small = { batch: 1, heads: 2, queryLength: 7, keyLength: 40, headDim: 3, valueDim: 2 };
    const labels = Int32Array.of(0, 1, 1, 2, 2, 2, 2, 2, 0, 1, 2, 1, 2, 2);
    const options = {
      ...attentionInputs(small, 330, (length, seed) => integers(length, seed, -1, 1)),
      shape: small,
      labels,
      clusters: 3,
      topK: 9,
    };
    const { indices: chosen } = await improved({ ...options, details: true });
    expectSameBits(chosen, oracle.chooseTopKeys(options));
  });

  test('no row is farther from exact attention than in clustered attention (Prop. 2)', async () => {
    // The identity as values makes the output the attention matrix itself.
    const { labels } = await improved({ ...inputs(), topK: 6, details: true });
    const call = { ...inputs(), labels };
    const sync = (operation, more) => (options) => ({
      output: operation({ ...options, ...more }),
    });
    const { improvedClusteredAttentionSync, clusteredAttentionSync } = required;
    const exact = oracle.attentionMatrix(oracle.attention, call);
    const near = oracle.attentionMatrix(sync(improvedClusteredAttentionSync, { topK: 6 }), call);
    const far = oracle.attentionMatrix(sync(clusteredAttentionSync), call);
    for (let row = 0; row < labels.length; ++row) {
      let nearDistance = 0;
      let farDistance = 0;
      let sum = 0;
      for (let at = row * 53; at < (row + 1) * 53; ++at) {
        nearDistance += Math.abs(near[at] - exact[at]);
        farDistance += Math.abs(far[at] - exact[at]);
        sum += near[at];
      }
      expect(nearDistance).toBeLessThanOrEqual(farDistance + 1e-6);
      expect(sum).toBeCloseTo(1, 5);
    }
  });

  test('bfloat16 computes on rounded operands', async () => {
    const options = { ...inputs(), topK: 7 };
    const rounded = Object.fromEntries(
      ['query', 'key', 'value'].map((name) => [name, roundToBfloat16(options[name])]),
    );
    const result = await improved({ ...options, precision: 'bfloat16', details: true });
    const { labels, indices: chosen } = result;
    const given = { ...options, ...rounded, labels, indices: chosen };
    expectClose(result.output, oracle.clusteredAttention(given).output, BFLOAT16_BOUND);
  });
});
