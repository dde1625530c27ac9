import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { caseCall, cases } from './support/cases.mjs';
import {
  BFLOAT16_BOUND,
  expectClose,
  expectSameBits,
  expectSameChoices,
} from './support/compare.mjs';
import { attentionInputs, normals, permutation, roundToBfloat16 } from './support/data.mjs';
import { bothForms, required } from './support/package.mjs';

const activations = ['softmax', 'laplace'];

/** Surrogates of a size that keeps the summed logits near 1. */
const castInputs = ({ batch, heads, queryLength, headDim }, clusters, seed) => ({
  surrogates: normals(heads * clusters * headDim, seed, 1 / Math.sqrt(heads * headDim)),
  gate: normals(batch * queryLength, seed + 1),
  clusters,
});

/**
 * A single assignment by descending best score, up to what float32 can tell apart: every token
 * once; the slots of a cluster in visiting order; and every cluster that a token would have
 * preferred is full of tokens visited before it.
 */
function expectGreedy(indices, scores, clusters, clusterSize) {
  const room = 1e-6;
  scores.forEach((tokens, b) => {
    const best = tokens.map((row) => Math.max(...row));
    const members = Array.from({ length: clusters }, (_, c) => {
      const first = (b * clusters + c) * clusterSize;
      return Array.from(indices.subarray(first, first + clusterSize)).filter((n) => n >= 0);
    });
    const placed = members.flat().toSorted((x, y) => x - y);
    expect(placed).toEqual(tokens.map((_token, n) => n));
    const earlier = (token, other) => best[token] >= best[other] - room;
    members.forEach((slots, c) => {
      slots.forEach((token, slot) => {
        if (slot > 0 && !earlier(slots[slot - 1], token)) expect.fail(`slot order of cluster ${c}`);
        tokens[token].forEach((score, other) => {
          if (score <= tokens[token][c] + room) return;
          const full = members[other].length === clusterSize;
          if (full && members[other].every((member) => earlier(member, token))) return;
          expect.fail(`token ${token} belongs to cluster ${other}, not ${c}`);
        });
      });
    });
  });
}

describe('castAttention', () => {
  const castAttention = bothForms('castAttention');

  async function expectAgreement({ options, plain, toPlain }) {
    const result = await castAttention({ ...options, details: true });
    const scores = oracle.affinity(plain);
    const size = Math.min(plain.clusterSize, plain.shape.queryLength);
    if (plain.selection === 'singleAssignment') {
      expectGreedy(result.indices, scores, plain.clusters, size);
    } else {
      const best = oracle.selectTopK(scores, plain.clusters, size);
      expectSameChoices(result.indices, best, (i, token) => {
        const list = Math.floor(i / size);
        const tokens = scores[Math.floor(list / plain.clusters)];
        return tokens[token]?.[list % plain.clusters];
      });
    }
    const expected = oracle.castAttention({ ...plain, indices: result.indices });
    expectClose(toPlain(result.output), expected.output);
    expect(result.coverage).toBeInstanceOf(Float64Array);
    expectClose(result.coverage, expected.coverage, 1e-12);
    return result;
  }

  test.each(cases)('agrees with the oracle: $name', async (entry) => {
    const { clusters, keyLength } = entry;
    const call = caseCall(entry, 1300, { self: true });
    for (const activation of activations) {
      for (const selection of ['topK', 'singleAssignment']) {
        // Single assignment needs room for every token.
        const room = selection === 'topK' ? 1 : Math.ceil(keyLength / clusters);
        const clusterSize = Math.max(1, room, entry.clusterSize);
        const choice = { activation, selection, clusterSize };
        const more = { ...castInputs(call.plain.shape, clusters, 1303), ...choice };
        await expectAgreement({
          options: { ...call.options, ...more },
          plain: { ...call.plain, ...more },
          toPlain: call.toPlain,
        });
      }
    }
  });

  const shape = { batch: 2, heads: 2, queryLength: 36, headDim: 8, valueDim: 5 };
  const inputs = (more) => ({
    ...attentionInputs(shape, 1310),
    shape,
    ...castInputs(shape, 4, 1313),
    clusterSize: 9,
    ...more,
  });
  const plainCall = (options) => ({ options, plain: options, toPlain: (output) => output });

  test.each(activations)(
    'one cluster of all tokens is exact attention (softmax only): %s',
    async (activation) => {
      const options = inputs({ ...castInputs(shape, 1, 1320), clusterSize: 36, activation });
      const output = await castAttention(options);
      const { query, key, value } = options;
      const exact = required.attentionSync({ query, key, value, shape });
      if (activation === 'softmax') expectClose(output, exact);
      else expect(Array.from(output)).not.toEqual(Array.from(exact));
    },
  );

  test.each([0, -0.5, 0.3])('takes scale %d', async (scale) => {
    for (const activation of activations) {
      await expectAgreement(plainCall(inputs({ scale, activation })));
    }
  });

  test('single assignment puts every token into exactly one cluster', async () => {
    for (const clusterSize of [9, 10, 36]) {
      const keyLengths = Int32Array.of(36, 21);
      const options = inputs({ clusterSize, selection: 'singleAssignment', keyLengths });
      const { indices, coverage } = await expectAgreement(plainCall(options));
      for (const [b, tokens] of [36, 21].entries()) {
        const half = indices.subarray((b * indices.length) / 2, ((b + 1) * indices.length) / 2);
        const filled = Array.from(half).filter((token) => token >= 0);
        expect(filled.toSorted((x, y) => x - y)).toEqual(
          Array.from({ length: tokens }, (_token, n) => n),
        );
      }
      expectSameBits(coverage, Float64Array.of(1, 1));
    }
  });

  test('single assignment without room for every token is refused', async () => {
    const options = inputs({ clusterSize: 8, selection: 'singleAssignment' });
    await expect(castAttention(options)).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
  });

  test('Top-K with Cκ = N leaves some tokens out and says how many', async () => {
    const { coverage } = await expectAgreement(plainCall(inputs()));
    coverage.forEach((share) => {
      expect(share).toBeGreaterThan(0.25);
      expect(share).toBeLessThan(1);
    });
  });

  test('permuting the tokens permutes the outputs', async () => {
    for (const selection of ['topK', 'singleAssignment']) {
      const options = inputs({ selection });
      const order = permutation(36, 1330);
      const permuted = (array, sequences, columns) => {
        const result = new Float32Array(array.length);
        for (let sequence = 0; sequence < sequences; ++sequence) {
          order.forEach((from, to) => {
            const start = (sequence * 36 + from) * columns;
            result.set(array.subarray(start, start + columns), (sequence * 36 + to) * columns);
          });
        }
        return result;
      };
      const shuffled = {
        ...options,
        query: permuted(options.query, 4, 8),
        key: permuted(options.key, 4, 8),
        value: permuted(options.value, 4, 5),
        gate: permuted(options.gate, 2, 1),
      };
      expectClose(await castAttention(shuffled), permuted(await castAttention(options), 4, 5));
    }
  });

  test('equal tokens are taken in index order', async () => {
    // All tokens alike: every score ties, whatever its value.
    const options = inputs();
    for (const [name, columns] of [
      ['query', 8],
      ['key', 8],
    ]) {
      const row = options[name].slice(0, columns);
      options[name] = options[name].map((_query, i) => row[i % columns]);
    }
    options.gate.fill(0.3);
    const { indices } = await castAttention({ ...options, details: true });
    indices.forEach((token, i) => expect(token).toBe(i % 9));
    const single = { ...options, selection: 'singleAssignment', details: true };
    const { indices: assigned } = await castAttention(single);
    for (const half of [assigned.subarray(0, 36), assigned.subarray(36)]) {
      const clusters = [0, 1, 2, 3].map((c) => Array.from(half.subarray(c * 9, (c + 1) * 9)));
      // The best cluster takes the first nine tokens, the next best the next nine, and so on.
      clusters.sort((x, y) => x[0] - y[0]);
      expect(clusters.flat()).toEqual(Array.from({ length: 36 }, (_token, n) => n));
    }
  });

  test('given indices: empty slots, empty clusters, padded tokens', async () => {
    const keyLengths = Int32Array.of(36, 20);
    const lists = [
      [0, 5, 35, -1],
      [-1, -1, -1, -1],
      [7, -1, 8, 0],
      [30, 31, 19, 33],
    ];
    // Slots as many as listed, and far more than there are tokens.
    for (const clusterSize of [4, 40]) {
      const empty = Array.from({ length: clusterSize - 4 }, () => -1);
      const row = lists.flatMap((list) => list.concat(empty));
      const indices = Int32Array.from([...row, ...row]);
      for (const activation of activations) {
        const options = inputs({ indices, clusterSize, keyLengths, activation });
        const result = await castAttention({ ...options, details: true });
        const expected = oracle.castAttention(options);
        expectClose(result.output, expected.output);
        expectClose(result.coverage, expected.coverage, 1e-12);
        const padded = row.map((token) => (token < 20 ? token : -1));
        expectSameBits(result.indices, Int32Array.from([...row, ...padded]));
      }
    }
  });

  test('its own indices given back give the same output', async () => {
    const { output, indices } = await castAttention(inputs({ details: true }));
    expectSameBits(await castAttention(inputs({ indices })), output);
  });

  test('extreme gates saturate without overflow', async () => {
    for (const level of [-90, 90]) {
      const options = inputs();
      options.gate.fill(level);
      options.scale = 0.01;
      await expectAgreement(plainCall(options));
    }
  });

  test('is not causal and is self-attention only', async () => {
    await expect(castAttention(inputs({ causal: true }))).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED',
    });
    const crossed = inputs({ shape: { ...shape, keyLength: 35 } });
    await expect(castAttention(crossed)).rejects.toBeInstanceOf(RangeError);
  });

  test('bfloat16 selects and computes on rounded operands', async () => {
    const options = inputs();
    const names = ['query', 'key', 'value', 'surrogates', 'gate'];
    const rounded = Object.fromEntries(names.map((name) => [name, roundToBfloat16(options[name])]));
    const result = await castAttention({ ...options, precision: 'bfloat16', details: true });
    const indices = oracle.selectTopK(oracle.affinity({ ...options, ...rounded }), 4, 9);
    expectSameBits(result.indices, indices);
    const expected = oracle.castAttention({ ...options, ...rounded, indices });
    expectClose(result.output, expected.output, BFLOAT16_BOUND);
  });
});
