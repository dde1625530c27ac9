import { describe, expect, test } from 'vitest';
import * as oracle from './oracle/index.mjs';
import { cases } from './support/cases.mjs';
import { BFLOAT16_BOUND, expectAll, expectClose, expectSameBits } from './support/compare.mjs';
import { indices, normals, roundToBfloat16 } from './support/data.mjs';
import { bothForms } from './support/package.mjs';

const weightNames = ['queryWeight', 'keyWeight', 'valueWeight', 'outputWeight'];

/** Weights of a size that keeps products near 1. */
function layer(dim, width, seed) {
  const deviation = { queryWeight: dim, keyWeight: dim, valueWeight: dim, outputWeight: width };
  return Object.fromEntries(
    weightNames.map((name, i) => [
      name,
      normals(dim * width, seed + i, 1 / Math.sqrt(deviation[name])),
    ]),
  );
}

function caseOptions(entry, seed) {
  const { batch, heads, keyLength: length, headDim } = entry;
  const dim = entry.valueDim;
  const centroids = Math.max(1, Math.min(entry.clusters, length));
  return {
    inputs: normals(batch * length * dim, seed),
    shape: { batch, length, dim, heads, headDim },
    centroids,
    ...layer(dim, heads * headDim, seed + 1),
  };
}

const rowsOf = ({ inputs, shape }, b) =>
  oracle.rowsAt(inputs, b * shape.length, shape.length, shape.dim);
const eachStart = (options, start) =>
  Array.from({ length: options.shape.batch }, (_rows, b) => start(rowsOf(options, b), b));

describe('centroidEncode', () => {
  const centroidEncode = bothForms('centroidEncode');

  // An empty sequence has nothing to start from.
  const filled = cases.filter(({ keyLength }) => keyLength > 0);

  test.each(filled)('agrees with the oracle: $name', async (entry) => {
    const options = caseOptions(entry, 1200);
    const { centroids } = options;
    const stride = eachStart(options, (rows) => oracle.strideStart(rows, centroids));
    expectClose(await centroidEncode(options), oracle.centroidEncode(options, stride));
    for (const normalize of ['centroids', 'inputs']) {
      for (const aggregate of ['sum', 'mean']) {
        const modes = { normalize, aggregate, steps: 2, stepSize: 0.25 };
        const expected = oracle.centroidEncode({ ...options, ...modes }, stride);
        expectClose(await centroidEncode({ ...options, ...modes }), expected);
      }
    }
  });

  test.each(filled)('with weights and neighbors: $name', async (entry) => {
    const options = { ...caseOptions(entry, 1210), aggregate: 'mean', steps: 2 };
    const { batch, length } = options.shape;
    const weights = normals(batch * length, 1211).map((x) => (x < -0.4 ? 0 : Math.abs(x)));
    for (let b = 0; b < batch; ++b) weights[b * length] = 0.5;
    const isActive = (b) => (_, i) => weights[b * length + i] > 0;
    const active = eachStart(options, (rows, b) => rows.filter(isActive(b)));
    const centroids = Math.min(entry.clusters, length, ...active.map((rows) => rows.length));
    const neighborCount = Math.min(length, 6);
    const more = {
      centroids,
      neighbors: indices(batch * centroids * neighborCount, 1212, -1, length - 1),
      neighborCount,
    };
    // Weight 0 is padding: the start is that of the remaining inputs.
    const stride = active.map((rows) => oracle.strideStart(rows, centroids));
    for (const normalize of ['centroids', 'inputs']) {
      const full = { ...options, ...more, weights, normalize };
      expectClose(await centroidEncode(full), oracle.centroidEncode(full, stride));
    }
  });

  const shape = { batch: 2, length: 40, dim: 12, heads: 3, headDim: 5 };
  const options = () => ({
    inputs: normals(2 * 40 * 12, 1220),
    shape,
    centroids: 4,
    ...layer(12, 15, 1221),
  });

  test('starts: farthest, given and a random sample', async () => {
    const farthest = eachStart(options(), (rows) => oracle.farthestStart(rows, 4));
    const call = { ...options(), initial: 'farthest' };
    expectClose(await centroidEncode(call), oracle.centroidEncode(call, farthest));

    const initial = normals(2 * 4 * 12, 1230);
    const given = eachStart(options(), (_rows, b) => oracle.rowsAt(initial, b * 4, 4, 12));
    expectClose(
      await centroidEncode({ ...options(), initial }),
      oracle.centroidEncode(options(), given),
    );

    // Without steps the start itself comes back: distinct rows of the inputs, the same in a batch.
    const sample = await centroidEncode({ ...options(), initial: 'sample', steps: 0, seed: 6 });
    const places = eachStart(options(), (rows, b) =>
      oracle.rowsAt(sample, b * 4, 4, 12).map((row) => rows.map(String).indexOf(String(row))),
    );
    expect(places[0].every((place) => place >= 0)).toBe(true);
    expect(new Set(places[0]).size).toBe(4);
    expect(places[1]).toEqual(places[0]);
    const sampled = eachStart(options(), (_rows, b) => oracle.rowsAt(sample, b * 4, 4, 12));
    expectClose(
      await centroidEncode({ ...options(), initial: 'sample', seed: 6 }),
      oracle.centroidEncode(options(), sampled),
    );
  });

  test('few centroids of wide heads, and many of narrow ones, are the same layer', async () => {
    // Both sides of the cost rule that decides where the key projection is absorbed.
    for (const [heads, headDim, centroids, dim] of [
      [2, 8, 2, 64],
      [1, 48, 3, 48],
      [8, 4, 20, 16],
    ]) {
      const size = { batch: 2, length: 50, dim, heads, headDim };
      const sized = {
        inputs: normals(2 * 50 * dim, 1240),
        shape: size,
        centroids,
        ...layer(dim, heads * headDim, 1241),
        aggregate: 'mean',
      };
      const stride = eachStart(sized, (rows) => oracle.strideStart(rows, centroids));
      expectClose(await centroidEncode(sized), oracle.centroidEncode(sized, stride));
    }
  });

  test('defaults: stride, 1 step of size 1, centroids, sum, seed 0', async () => {
    const explicit = {
      initial: 'stride',
      steps: 1,
      stepSize: 1,
      scale: 1 / Math.sqrt(5),
      normalize: 'centroids',
      aggregate: 'sum',
      seed: 0,
    };
    expectSameBits(
      await centroidEncode({ ...options(), ...explicit }),
      await centroidEncode(options()),
    );
  });

  test.each([0, -1])('takes step size and scale %d', async (factor) => {
    const stride = eachStart(options(), (rows) => oracle.strideStart(rows, 4));
    for (const more of [{ stepSize: factor }, { scale: factor }]) {
      const call = { ...options(), ...more };
      expectClose(await centroidEncode(call), oracle.centroidEncode(call, stride));
    }
  });

  test('more centroids than inputs need a given start', async () => {
    const initial = normals(2 * 50 * 12, 1250);
    const given = eachStart(options(), (_rows, b) => oracle.rowsAt(initial, b * 50, 50, 12));
    const many = { ...options(), centroids: 50 };
    await expect(centroidEncode(many)).rejects.toMatchObject({ code: 'ERR_OUT_OF_RANGE' });
    expectClose(await centroidEncode({ ...many, initial }), oracle.centroidEncode(many, given));
  });

  test('without inputs a given start comes back unchanged', async () => {
    const initial = normals(2 * 3 * 12, 1260);
    const empty = { inputs: new Float32Array(0), shape: { ...shape, length: 0 }, centroids: 3 };
    for (const normalize of ['centroids', 'inputs']) {
      const call = { ...options(), ...empty, initial, normalize, aggregate: 'mean', steps: 2 };
      expectSameBits(await centroidEncode(call), initial);
    }
  });

  test('centroids past the number of inputs that are left are zeros and take part in nothing', async () => {
    const weights = new Float32Array(2 * 40);
    for (const i of [0, 7, 31, 40 + 5, 40 + 6, 40 + 39]) weights[i] = 1 + i / 80;
    const isActive = (b) => (_row, i) => weights[b * 40 + i] > 0;
    const few = { ...options(), centroids: 3, weights, aggregate: 'mean', steps: 2 };
    const start = eachStart(few, (rows, b) => oracle.strideStart(rows.filter(isActive(b)), 3));
    for (const normalize of ['centroids', 'inputs']) {
      const output = await centroidEncode({ ...few, normalize, centroids: 5 });
      const expected = oracle.centroidEncode({ ...few, normalize }, start);
      for (const b of [0, 1]) {
        const rows = output.subarray(b * 5 * 12, (b + 1) * 5 * 12);
        expectClose(rows.subarray(0, 3 * 12), expected.subarray(b * 3 * 12, (b + 1) * 3 * 12));
        expectAll(rows.subarray(3 * 12), 0);
      }
    }
  });

  test('bfloat16 computes on rounded operands', async () => {
    const exact = { ...options(), aggregate: 'mean' };
    const rounded = Object.fromEntries(
      ['inputs', ...weightNames].map((name) => [name, roundToBfloat16(exact[name])]),
    );
    const call = { ...exact, ...rounded };
    const stride = eachStart(call, (rows) => oracle.strideStart(rows, 4));
    const output = await centroidEncode({ ...exact, precision: 'bfloat16' });
    expectClose(output, oracle.centroidEncode(call, stride), 2 * BFLOAT16_BOUND);
  });
});
