// NaN and infinities: refused by default with the argument and the first bad index; under
// nonFinite: 'propagate' they reach exactly the rows that depend on them.

import { describe, expect, test } from 'vitest';
import { expectSameBits } from './support/compare.mjs';
import { attentionInputs, indices, integers, normals } from './support/data.mjs';
import { names, operations } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';
import { errorOf } from './support/refusal.mjs';

const floatInputs = (options) =>
  Object.entries(options).filter(([, value]) => value instanceof Float32Array);

function expectNonFinite(error, argument, index) {
  expect(error).toBeInstanceOf(Error);
  expect(error.code).toBe('ERR_NON_FINITE');
  expect(error.message).toContain(argument);
  if (index !== undefined) expect(error.message).toMatch(new RegExp(`\\b${index}\\b`));
}

describe.each(names)('%s', (name) => {
  const { minimal, arguments: known } = operations[name];
  const inputs = floatInputs(minimal()).map(([input]) => input);

  test.each(inputs)('refuses a bad %s and names its first bad index', async (input) => {
    for (const bad of [NaN, Infinity, -Infinity]) {
      for (const place of ['first', 'last', 'two']) {
        const options = minimal();
        const last = options[input].length - 1;
        const index = place === 'first' ? 0 : place === 'last' ? last : Math.floor(last / 2);
        options[input][index] = bad;
        if (place === 'two') options[input][last] = NaN;
        const out = known.out?.valid().fill(5);
        if (out) options.out = out;
        expectNonFinite(await errorOf(() => imported[name](options)), input, index);
        if (out) expect(out.every((value) => value === 5)).toBe(true);
        expectNonFinite(await errorOf(() => required[`${name}Sync`](options)), input, index);
        // Either the old content or nothing that looks like a result.
        if (out) expect(out.every((value) => value === 5) || out.every(Number.isNaN)).toBe(true);
      }
    }
  });

  test('a refused call leaves nothing behind', async () => {
    const expected = required[`${name}Sync`](minimal());
    for (const [input] of floatInputs(minimal())) {
      const options = minimal();
      options[input].fill(NaN);
      await errorOf(() => imported[name](options));
    }
    expect(await imported[name](minimal())).toEqual(expected);
  });
});

describe('what a result cannot show by itself', () => {
  const shape = { batch: 1, heads: 1, queryLength: 6, keyLength: 9, headDim: 2 };
  const positive = () => ({
    query: new Float32Array(12).fill(1),
    key: new Float32Array(18).fill(1),
    value: normals(18, 1500),
    shape,
  });

  // A key of −Inf gets weight exp(−Inf) = 0: the output stays finite.
  test.each([
    ['attention', {}],
    ['clusteredAttention', { clusters: 2 }],
    ['improvedClusteredAttention', { clusters: 2, topK: 2 }],
    ['improvedClusteredAttention', { clusters: 2, labels: new Int32Array(6), topK: 2 }],
    ['centroidAttention', { normalize: 'inputs' }],
  ])('a key whose logit is −Infinity: %s', async (name, more) => {
    const options = { ...positive(), ...more };
    options.key[6] = -Infinity;
    expectNonFinite(await errorOf(() => imported[name](options)), 'key', 6);
  });

  test('finite inputs whose result leaves the range of float32', async () => {
    const options = { ...positive(), aggregate: 'sum' };
    options.value.fill(3e38);
    expectNonFinite(await errorOf(() => imported.centroidAttention(options)), '');
    const sum = {
      inputs: new Float32Array(4).fill(3e38),
      labels: new Int32Array(4),
      shape: { batch: 1, length: 4, dim: 1 },
      clusters: 1,
      reduce: 'sum',
    };
    expectNonFinite(await errorOf(() => imported.aggregate(sum)), '');
  });

  test('the message is true of what `out` held, and of what happens on the way', async () => {
    const one = { a: Float32Array.of(1), b: Float32Array.of(1) };
    const size = { batch: 1, rows: 1, depth: 1, columns: 1 };
    const added = { ...one, shape: size, accumulate: true, out: Float32Array.of(NaN) };
    const { message } = await errorOf(() => required.matmulSync(added));
    expect(message).toBe(
      'output must be finite, received NaN or Infinity in it or on the way to it from finite ' +
        'inputs (the range of float32 ends at 3.4e38, that of logits in gradients at 65536)',
    );
  });

  // 1/Inf = 0 would make zeros of them: each case has a finite value, or none but in its details.
  test.each([
    ['the mean', { aggregate: 'mean' }],
    ['masses', { details: true }],
    ['masses of listed inputs', { details: true, neighbors: Int32Array.of(0, 1, 2, 3) }],
  ])('weights whose sum leaves the range of float32: %s', async (_, more) => {
    const options = {
      query: new Float32Array(1),
      key: new Float32Array(4),
      value: new Float32Array(4).fill(1e-30),
      shape: { batch: 1, heads: 1, queryLength: 1, keyLength: 4, headDim: 1 },
      weights: new Float32Array(4).fill(3e38),
      ...more,
    };
    expectNonFinite(await errorOf(() => imported.centroidAttention(options)), '');
    expectNonFinite(await errorOf(() => required.centroidAttentionSync(options)), '');
    const { details } = options;
    const loose = required.centroidAttentionSync({ ...options, nonFinite: 'propagate' });
    expect((details ? loose.masses : loose).every(Number.isFinite)).toBe(false);
    const rest = { shape: { batch: 1, length: 4, dim: 1, heads: 1, headDim: 1 }, centroids: 1 };
    const one = Float32Array.of(1);
    const encode = { queryWeight: one, keyWeight: one, valueWeight: one, outputWeight: one };
    const { key: inputs, weights, aggregate } = options;
    const call = { ...encode, ...rest, inputs, weights, aggregate };
    if (!details) expectNonFinite(await errorOf(() => imported.centroidEncode(call)), '');
  });

  test('a NaN at a place that a hash bit hides', async () => {
    const inputs = Float32Array.of(1, 2, 3, NaN);
    const call = { inputs, planes: normals(9, 1501), shape: { rows: 2, dim: 2, bits: 3 } };
    expectNonFinite(await errorOf(() => imported.hash(call)), 'inputs', 3);
  });

  test('a NaN in a query does not hide behind its cluster', async () => {
    const options = { ...positive(), clusters: 3 };
    options.query[7] = NaN;
    expectNonFinite(await errorOf(() => imported.clusteredAttention(options)), 'query', 7);
    const labels = Int32Array.of(0, 0, 0, -1, 0, 0);
    const given = await imported.clusteredAttention({ ...options, labels });
    expect(given.every(Number.isFinite)).toBe(true);
  });
});

describe('propagate', () => {
  const shape = { batch: 2, heads: 2, queryLength: 20, keyLength: 24, headDim: 6, valueDim: 5 };
  const inputs = () => ({ ...attentionInputs(shape, 1510), shape, nonFinite: 'propagate' });

  /** Rows (of `columns`) that are all NaN where expected, and else the clean bits. */
  function expectRows(output, clean, columns, isBad) {
    for (let row = 0; row * columns < output.length; ++row) {
      const mine = output.slice(row * columns, (row + 1) * columns);
      if (isBad(row)) expect(mine.every(Number.isNaN), `row ${row} is NaN`).toBe(true);
      else expectSameBits(mine, clean.slice(row * columns, (row + 1) * columns));
    }
  }

  test('changes no bit of a finite call', async () => {
    for (const name of names.filter((each) => operations[each].arguments.nonFinite)) {
      const options = operations[name].typical();
      const plain = await imported[name](options);
      expect(await imported[name]({ ...options, nonFinite: 'propagate' })).toEqual(plain);
    }
  });

  test('attention: a NaN query reaches its own row', async () => {
    const options = inputs();
    const clean = await imported.attention(options);
    options.query[25 * 6 + 2] = NaN;
    expectRows(await imported.attention(options), clean, 5, (row) => row === 25);
  });

  test('attention: a NaN key reaches the rows that see it', async () => {
    const options = { ...inputs(), causal: true };
    const clean = await imported.attention(options);
    // Key 15 of sequence 1 is seen by the queries from 15 − (24 − 20) on.
    options.key[(24 + 15) * 6] = NaN;
    expectRows(await imported.attention(options), clean, 5, (row) => row >= 31 && row < 40);
  });

  test('clustered attention with labels: a NaN query reaches its cluster', async () => {
    const labels = indices(80, 1520, -1, 3);
    labels[30] = 2;
    for (const name of ['clusteredAttention', 'improvedClusteredAttention']) {
      const options = { ...inputs(), labels, clusters: 4 };
      const clean = await imported[name](options);
      options.query[30 * 6] = NaN;
      const inCluster = (row) => row >= 20 && row < 40 && labels[row] === 2;
      expectRows(await imported[name](options), clean, 5, inCluster);
    }
  });

  test('centroid attention: a NaN input reaches the centroids that take it', async () => {
    const neighbors = indices(2 * 20 * 3, 1530, 0, 23).map((i) => (i === 7 ? 8 : i));
    neighbors[5 * 3] = 7;
    for (const normalize of ['centroids', 'inputs']) {
      const options = { ...inputs(), normalize, neighbors, neighborCount: 3 };
      const clean = await imported.centroidAttention(options);
      options.key[7 * 6] = NaN;
      const output = await imported.centroidAttention(options);
      expectRows(output, clean, 5, (row) => row === 5);
    }
  });

  test('other sequences of the batch keep their bits', async () => {
    const calls = [
      ['castAttention', 'key'],
      ['kMeans', 'inputs'],
      ['centroidPool', 'inputs'],
      ['centroidEncode', 'inputs'],
      ['aggregate', 'inputs'],
    ];
    for (const [name, input] of calls) {
      const options = { ...operations[name].minimal(), nonFinite: 'propagate' };
      const first = (result) => {
        const array = result.centroids ?? result;
        return array.slice(0, array.length / 2);
      };
      const clean = first(await imported[name](options));
      options[input][options[input].length - 1] = NaN;
      expectSameBits(first(await imported[name](options)), clean);
    }
  });

  test('top-k keys: a NaN score is chosen first', async () => {
    const options = {
      ...inputs(),
      ...attentionInputs(shape, 1540, (n, seed) => integers(n, seed, 1, 3)),
      labels: new Int32Array(80),
      clusters: 1,
      topK: 2,
      details: true,
    };
    options.key[13 * 6] = NaN;
    const { indices: chosen } = await imported.improvedClusteredAttention(options);
    expect(chosen[0]).toBe(13);
  });

  test('single assignment: tokens of NaN alone go to the clusters in order', async () => {
    const sizes = { batch: 1, heads: 1, queryLength: 60, keyLength: 60, headDim: 4 };
    const { indices: members } = await imported.castAttention({
      ...attentionInputs(sizes, 1550),
      shape: sizes,
      query: new Float32Array(60 * 4).fill(NaN),
      surrogates: normals(20 * 4, 1551),
      gate: normals(60, 1552),
      clusters: 20,
      clusterSize: 3,
      selection: 'singleAssignment',
      nonFinite: 'propagate',
      details: true,
    });
    expect(members).toEqual(Int32Array.from({ length: 60 }, (_, i) => i));
  });
});
