// Numbers whose squares or products leave float32: what is chosen and computed must be what the
// definition says, or the call must fail.

import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { expectClose, expectSameBits, expectSameChoices } from './support/compare.mjs';
import { normals } from './support/data.mjs';
import { bothForms, required } from './support/package.mjs';

const times = (array, factor) => array.map((value) => value * factor);

describe('starting rows', () => {
  const shape = { batch: 1, length: 40, dim: 3 };
  const starts = ['farthest', 'kmeans++'];
  // Squared distances overflow, differences too, squared distances underflow, rows are denormal.
  const scales = [2 ** 70, 2 ** 125, 2 ** -60, 2 ** -80, 2 ** -120];
  const coarse = normals(120, 3100).map((value) => Math.round(value * 64) / 64);

  test.each(starts.flatMap((initial) => scales.map((scale) => [initial, scale])))(
    '%s of pooling: the same whatever the scale: %f',
    async (initial, scale) => {
      const call = { shape, centroids: 9, iterations: 0, initial, similarity: 'dot' };
      const pool = bothForms('centroidPool');
      const expected = await pool({ ...call, inputs: coarse });
      const actual = await pool({ ...call, inputs: times(coarse, scale) });
      expectSameBits(actual, times(expected, scale));
    },
  );

  test.each(starts)('%s: near rows are told apart once far ones are taken', async (initial) => {
    const inputs = Float32Array.of(0, 1, 0, 1e-30, 3e-30, 2e-30, 0);
    const call = { shape: { batch: 1, length: 7, dim: 1 }, initial, similarity: 'dot' };
    const pool = bothForms('centroidPool');
    const chosen = await pool({ ...call, inputs, centroids: 3, iterations: 0 });
    if (initial === 'farthest') expectSameBits(chosen, Float32Array.of(0, 1, 3e-30));
    expect(new Set(chosen).size).toBe(3);
  });

  test('farthest rows of the learned layer, of huge inputs and small weights', async () => {
    const inputs = times(coarse, 2 ** 70);
    const weight = times(normals(9, 3101), 2 ** -70);
    const names = ['queryWeight', 'keyWeight', 'valueWeight', 'outputWeight'];
    const weights = Object.fromEntries(names.map((name) => [name, weight]));
    const call = { shape: { ...shape, heads: 1, headDim: 3 }, centroids: 9, initial: 'farthest' };
    const encode = bothForms('centroidEncode');
    const huge = await encode({ ...weights, ...call, inputs, steps: 0 });
    const plain = await encode({ ...weights, ...call, inputs: coarse, steps: 0 });
    expectSameBits(huge, times(plain, 2 ** 70));
  });
});

describe('weights of extreme size, over the inputs', () => {
  const shape = { batch: 2, heads: 2, queryLength: 9, keyLength: 70, headDim: 4, valueDim: 3 };
  const weights = normals(140, 3200).map((value) => Math.abs(Math.round(value * 8)) / 8);
  const options = {
    query: normals(144, 3201),
    key: normals(1120, 3202),
    value: normals(840, 3203),
    shape,
    weights,
    normalize: 'inputs',
  };
  const lists = { neighbors: Int32Array.from({ length: 90 }, (_, i) => (i * 7) % 70) };
  const attention = bothForms('centroidAttention');

  // Sums of weights overflow, products with values and with exponentials underflow.
  const forms = { all: {}, listed: lists };
  const exponents = [124, 100, -100, -130, -145];
  test.each(Object.keys(forms).flatMap((form) => exponents.map((e) => [form, e])))(
    'only their ratios count: %s, times 2^%d',
    async (form, exponent) => {
      const more = forms[form];
      const call = { ...options, ...more, details: true };
      const expected = await attention(call);
      const scaled = times(times(weights, 2 ** (exponent / 2)), 2 ** (exponent / 2));
      const actual = await attention({ ...call, weights: scaled });
      expectClose(actual.output, expected.output);
      expectSameBits(actual.labels, expected.labels);
      const terms = shape.heads * shape.queryLength * exponent * Math.LN2;
      expectClose(
        actual.objective,
        expected.objective.map((each) => each + terms),
      );

      const back = (of) => required.centroidAttentionVjpSync({ ...options, ...more, weights: of });
      const gradOutput = normals(108, 3204);
      const wanted = back(weights).backward(gradOutput);
      const gradients = ['query', 'key', 'value', ...(exponent > -130 ? ['weights'] : [])];
      const got = back(scaled).backward(gradOutput, { gradients });
      for (const name of ['query', 'key', 'value']) expectClose(got[name], wanted[name], 1e-5);
      if (exponent <= -130) return; // those by the weights leave float32
      const byWeights = Float64Array.from(got.weights, (each) => each * 2 ** exponent);
      expectClose(byWeights, wanted.weights, 1e-5);
    },
  );
});

describe('weights of all sizes, over listed inputs', () => {
  test('a list of small weights alone has a sum, too', async () => {
    const call = {
      query: Float32Array.of(1, 1),
      key: Float32Array.of(0, 0, 0, 0),
      value: Float32Array.of(1, 3, 5, 9),
      weights: Float32Array.of(1e-30, 1e-30, 1e37, 3e37),
      shape: { batch: 1, heads: 1, queryLength: 2, keyLength: 4, headDim: 1 },
      normalize: 'inputs',
      neighbors: Int32Array.of(0, 1, 2, 3),
      details: true,
    };
    const { output, masses, objective } = await bothForms('centroidAttention')(call);
    expectClose(output, [2, 8]);
    expectSameBits(masses, Float32Array.of(1, 1));
    expectClose(objective, [Math.log(2e-30) + Math.log(4e37)]);
  });
});

describe('projections that leave float32 on the way', () => {
  const shape = { rows: 40, dim: 12, bits: 64 };
  const inputs = normals(480, 3300).map((value) => Math.round(value * 64) / 64);
  const planes = normals(64 * 13, 3301).map((value, i) => (i % 13 === 12 ? 0 : value));

  test('hash: their sign is that of the whole sum', async () => {
    const hash = bothForms('hash');
    const expected = await hash({ inputs, planes, shape });
    for (const exponent of [124, 125]) {
      const huge = times(inputs, 2 ** exponent);
      expect(huge.every(Number.isFinite)).toBe(true);
      expectSameBits(await hash({ inputs: huge, planes, shape }), expected);
    }
  });

  test('clustered attention refuses them for thresholds from the data: they have no rank', () => {
    const size = { batch: 1, heads: 1, queryLength: 40, headDim: 12 };
    const query = times(inputs, 2 ** 125);
    const key = times(inputs, 2 ** -125);
    const call = { query, key, value: inputs, shape: size, clusters: 5, threshold: 'data' };
    expect(() => required.clusteredAttentionSync(call)).toThrow(
      expect.objectContaining({ code: 'ERR_NON_FINITE', argument: 'output' }),
    );
  });
});

describe('pooling from given centroids far from the inputs', () => {
  const shape = { batch: 1, length: 60, dim: 4 };
  const inputs = normals(240, 3400);
  const directions = normals(12, 3401);

  test.each(['dot', 'euclidean'].flatMap((kind) => [1e5, 1e9].map((far) => [kind, far])))(
    '%s, %d times as far: the second step sees the inputs again',
    async (similarity, far) => {
      const initial = times(directions, far);
      const call = { inputs, shape, centroids: 3, similarity, details: true };
      const pool = bothForms('centroidPool');
      const actual = await pool({ ...call, initial, temperature: 0, iterations: 1 });
      const rows = oracle.rowsAt(actual.output, 0, 3, 4);
      const points = oracle.rowsAt(inputs, 0, 60, 4);
      const expected = oracle.centroidPool(points, rows, {
        ...call,
        iterations: 0,
        temperature: 0,
      });
      expectSameChoices(actual.labels, expected.labels, (i, j) => expected.scores[j][i]);
    },
  );
});

describe('long sequences of equal values', () => {
  // 0.1 is no sum of few powers of two: a chain of its sums in float32 drifts by 4e-3.
  test('the mean of a hard assignment of 2^20 of them', async () => {
    const length = 2 ** 20 + 100;
    const inputs = new Float32Array(length).fill(0.1);
    const shape = { batch: 1, length, dim: 1 };
    const call = { inputs, shape, centroids: 1, iterations: 1, temperature: 0, details: true };
    const { output, masses } = await bothForms('centroidPool')({ ...call, similarity: 'dot' });
    expect(masses).toEqual(Float32Array.of(length));
    expectClose(output, inputs.subarray(0, 1), 1e-5);
  });
});

describe('gradients at large logits', () => {
  const shape = { batch: 1, heads: 1, queryLength: 20, keyLength: 70, headDim: 8 };
  const labels = Int32Array.from({ length: 20 }, (_, i) => i % 4);
  const cases = {
    attention: {},
    clusteredAttention: { labels, clusters: 4 },
    improvedClusteredAttention: { labels, clusters: 4, topK: 5 },
    centroidAttention: { normalize: 'inputs' },
    'centroidAttention of lists': {
      normalize: 'inputs',
      neighbors: Int32Array.from({ length: 1400 }, (_, i) => i % 70),
    },
  };
  const [query, key, value] = [normals(160, 3500), normals(560, 3501), normals(560, 3502)];

  test.each(Object.keys(cases))('%s: right to a percent, or refused', (label) => {
    const name = label.split(' ')[0];
    const gradOutput = new Float32Array(160).fill(1);
    for (const scale of [1e2, 1e3, -1e3, 3e3, 1e6, 1e8, 1e20, 1e30, -1e30]) {
      const call = { query, key, value, shape, scale, ...cases[label] };
      const back = (more) => required[`${name}VjpSync`]({ ...call, ...more }).backward(gradOutput);
      if (Math.abs(scale) < 1e5) {
        // Each query spreads its gradient over the values: their sum is that of the weights, 1.
        const sum = back({}).value.reduce((a, b) => a + b, 0);
        expect(Math.abs(sum / 160 - 1)).toBeLessThan(1e-2);
      } else {
        expect(() => back({})).toThrow(expect.objectContaining({ code: 'ERR_NON_FINITE' }));
        const loose = back({ nonFinite: 'propagate' });
        expect(loose.value.every(Number.isFinite)).toBe(false);
      }
    }
  });
});
