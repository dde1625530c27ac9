// What happens to options that an operation does not have, and to sizes that can be inferred.
import { createRequire } from 'node:module';
import { describe, expect, test } from 'vitest';

const library = createRequire(import.meta.url)('../..');

const ramp = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i + 1));
const shape = { batch: 1, heads: 2, queryLength: 6, headDim: 3 };
const attention = () => ({ query: ramp(36), key: ramp(36), value: ramp(36), shape });
const rows = { batch: 1, length: 6, dim: 3 };

describe('options of other operations', () => {
  test('that say nothing about the result are passed over', () => {
    const shared = { ...attention(), clusters: 2, topK: 3, iterations: 1, seed: 5 };
    expect(library.clusteredAttentionSync(shared)).toHaveLength(36);
    expect(library.attentionSync(shared)).toEqual(library.attentionSync(attention()));
  });

  test.each([
    ['clusteredAttention', { ...attention(), clusters: 2, causal: true }, 'causal'],
    ['centroidAttention', { ...attention(), causal: true }, 'causal'],
    ['attention', { ...attention(), weights: ramp(6) }, 'weights'],
    [
      'aggregate',
      {
        inputs: ramp(18),
        labels: new Int32Array(6),
        shape: rows,
        clusters: 1,
        lengths: new Int32Array(1),
      },
      'lengths',
    ],
    ['kMeans', { inputs: ramp(18), shape: rows, clusters: 2, out: ramp(6) }, 'out'],
    ['topK', { scores: ramp(6), shape: { rows: 1, columns: 6 }, k: 2, scale: 2 }, 'scale'],
  ])('%s refuses one that would change its result', (name, options, argument) => {
    const refusal = expect.objectContaining({ code: 'ERR_UNSUPPORTED', argument });
    expect(() => library[`${name}Sync`](options)).toThrow(refusal);
    expect(library[`${name}Sync`]({ ...options, [argument]: undefined })).toBeDefined();
  });

  const inputs = () => ({ inputs: ramp(18), shape: rows });
  const encode = () => ({
    inputs: ramp(18),
    shape: { ...rows, heads: 1, headDim: 1 },
    centroids: 2,
    ...Object.fromEntries(['query', 'key', 'value', 'output'].map((w) => [`${w}Weight`, ramp(3)])),
  });
  const scores = () => ({ scores: ramp(6), shape: { rows: 1, columns: 6 }, k: 2 });
  const { query, key } = attention();
  const dot = () => ({ query, key, shape, indices: new Int32Array(12), k: 1 });
  const hashing = () => ({
    inputs: ramp(18),
    planes: ramp(16),
    shape: { rows: 6, dim: 3, bits: 4 },
  });
  const clustered = () => ({ ...attention(), clusters: 2 });

  test.each([
    ['centroidEncode', encode, { iterations: 3 }, 'the operation has steps instead'],
    ['centroidPool', inputs, { centroids: 2, steps: 3 }, 'the operation has iterations instead'],
    ['kMeans', inputs, { clusters: 2, steps: 3 }, 'the operation has iterations instead'],
    [
      'centroidPool',
      inputs,
      { centroids: 2, metric: 'cosine' },
      'the operation has similarity instead',
    ],
    ['kMeans', inputs, { clusters: 2, similarity: 'cosine' }, 'the operation has metric instead'],
    ['improvedClusteredAttention', clustered, { k: 3 }, 'the operation has topK instead'],
    ['topK', scores, { topK: 3 }, 'the operation has k instead'],
    ['sparseDot', dot, { topK: 3 }, 'the operation has k instead'],
    ['hash', hashing, { bits: 4 }, 'the operation has it in shape'],
    ['attention', attention, { keyLength: 3 }, 'the operation has it in shape'],
    [
      'clusteredAttention',
      clustered,
      { indices: new Int32Array(4) },
      'the operation has no such option',
    ],
    [
      'improvedClusteredAttention',
      clustered,
      { indices: new Int32Array(4) },
      'the operation has no such option',
    ],
    [
      'attention',
      attention,
      { out: new Float32Array(36), accumulate: true },
      'the operation has no such option',
    ],
  ])('%s refuses what it has by another name or not at all', async (name, make, more, reason) => {
    const argument = Object.keys(more).at(-1);
    const options = { ...make(), ...more };
    const refusal = { code: 'ERR_UNSUPPORTED', argument };
    const message = `${argument} must be absent: ${reason}`;
    expect(() => library[`${name}Sync`](options)).toThrow(expect.objectContaining(refusal));
    expect(() => library[`${name}Sync`](options)).toThrow(message);
    const { [name]: operation } = await import('../../dist/index.js');
    await expect(operation(options)).rejects.toMatchObject({ ...refusal, message });
    expect(library[`${name}Sync`]({ ...options, [argument]: undefined })).toBeDefined();
  });

  test('reduce serves the way back as well', () => {
    const way = { labels: Int32Array.of(0, 1, 0, 1, 0, 1), shape: rows, clusters: 2 };
    const back = { ...way, inputs: ramp(6) };
    for (const reduce of ['mean', 'sum']) {
      expect(library.broadcastSync({ ...back, reduce })).toEqual(library.broadcastSync(back));
    }
    const refusal = { code: 'ERR_OUT_OF_RANGE', argument: 'reduce' };
    expect(() => library.broadcastSync({ ...back, reduce: 'max' })).toThrow(
      expect.objectContaining(refusal),
    );
  });

  test.each([
    ['itterations', 'iterations'],
    ['clustres', 'clusters'],
    ['topk', 'topK'],
    ['q', 'query or queryLengths'],
    ['v', 'value'],
    ['keys', 'key or keyLengths'],
    ['numClusters', 'clusters'],
    ['isCausal', 'causal'],
    ['mask', 'keyLengths or queryLengths'],
    ['attn_mask', 'keyLengths or queryLengths'],
  ])('nobody knows are errors that name those with letters or a word of %s', (name, similar) => {
    const misspelt = { ...attention(), clusters: 2, [name]: 3 };
    expect(() => library.improvedClusteredAttentionSync(misspelt)).toThrow(
      `unknown option ${name}: expected a known name, such as ${similar}`,
    );
  });

  test.each([
    ['seqLen', 'keyLength or queryLength'],
    ['numHeads', 'heads or headDim'],
    ['batchSize', 'batch'],
  ])('and nobody knows in a shape: %s', (name, similar) => {
    const misspelt = { ...attention(), shape: { ...shape, [name]: 3 } };
    expect(() => library.attentionSync(misspelt)).toThrow(
      `unknown option shape.${name}: expected a known name, such as ${similar}`,
    );
  });

  test.each(['dropout', 'x', '', '_', 'x'.repeat(1000)])(
    'that are like none, such as %j, are errors that list all of them',
    (name) => {
      const all = 'device, precision, nonFinite, signal, details, scores, shape, k, lengths'.split(
        ', ',
      );
      expect(() => library.topKSync({ ...scores(), [name]: 1 })).toThrow(
        `unknown option ${name}: expected one of ${all.join(', ')}`,
      );
    },
  );
});

describe('what was received instead', () => {
  const floats = ramp(36);
  const trap = () => expect.fail('code of the caller ran');
  const traps = { get: trap, getPrototypeOf: trap, has: trap, ownKeys: trap };

  test.each([
    ['a Promise (not awaited)', Promise.resolve(floats)],
    ['an ArrayBuffer', floats.buffer],
    ['a SharedArrayBuffer', new SharedArrayBuffer(144)],
    ['a DataView', new DataView(floats.buffer)],
    ['a Map', new Map()],
    ['a Set', new Set()],
    ['an array of 2 elements', [1, 2]],
    ['a Float64Array of 36 elements', new Float64Array(36)],
    ['an object', {}],
    ['an object', new Proxy([], traps)],
    ['an object', Object.defineProperty({}, Symbol.toStringTag, { get: trap })],
  ])('of an array is called %s', (received, query) => {
    const call = () => library.attentionSync({ ...attention(), query });
    expect(call).toThrow(/^query must be a Float32Array of 36 elements, /);
    expect(call).toThrow(`, received ${received}`);
  });

  test('of options is called by its kind', async () => {
    const { query, key, value } = attention();
    const message = 'options must be an object, received a Float32Array of 36 elements';
    expect(() => library.attentionSync(query, key, value, shape)).toThrow(message);
    await expect(library.attention(query, key, value, shape)).rejects.toThrow(message);
    expect(() => library.attentionSync([attention()])).toThrow(
      'options must be an object, received an array of 1 elements',
    );
    expect(() => library.attentionSync(Promise.resolve(attention()))).toThrow(
      'options must be an object, received a Promise (not awaited)',
    );
    expect(() => library.attentionSync({ ...attention(), shape: [1, 2, 6, 3] })).toThrow(
      'shape must be an object, received an array of 4 elements',
    );
  });
});

describe('details', () => {
  test.each([
    ['lshPlanes', { bits: 4, dim: 3 }],
    ['aggregate', { inputs: ramp(18), labels: new Int32Array(6), shape: rows, clusters: 1 }],
    ['hash', { inputs: ramp(18), planes: ramp(16), shape: { rows: 6, dim: 3, bits: 4 } }],
  ])('of %s hold the output alone', async (name, options) => {
    const output = library[`${name}Sync`](options);
    expect(library[`${name}Sync`]({ ...options, details: true })).toEqual({ output });
    expect(await library[name]({ ...options, details: true })).toEqual({ output });
  });
});

describe('sizes past the range of labels and indices', () => {
  test.each([
    ['clusteredAttention', { ...attention() }, 'clusters'],
    ['improvedClusteredAttention', { ...attention(), clusters: 2 }, 'topK'],
    ['topK', { scores: ramp(6), shape: { rows: 1, columns: 6 } }, 'k'],
  ])('%s: clamped up to 2^31 - 1, refused from there on: %s', (name, options, argument) => {
    const call = (size) => library[`${name}Sync`]({ ...options, [argument]: size });
    expect(call(2 ** 31 - 1)).toEqual(call(6));
    expect(() => call(2 ** 31)).toThrow(
      expect.objectContaining({ code: 'ERR_OUT_OF_RANGE', argument }),
    );
  });
});

describe('sizes that the arrays give', () => {
  test('bits are those of the planes', () => {
    const planes = library.lshPlanesSync({ bits: 16, dim: 3, seed: 1 });
    const options = { ...attention(), clusters: 3, planes };
    const expected = library.clusteredAttentionSync({ ...options, bits: 16 });
    expect(library.clusteredAttentionSync(options)).toEqual(expected);
  });

  test('neighborCount is that of the neighbors', () => {
    const neighbors = Int32Array.from({ length: 18 }, (_, i) => i % 6);
    const options = { ...attention(), neighbors };
    const expected = library.centroidAttentionSync({ ...options, neighborCount: 3 });
    expect(library.centroidAttentionSync(options)).toEqual(expected);
  });

  test('neighbors without a list need no neighborCount', () => {
    const none = new Float32Array();
    const noBatch = { batch: 0, heads: 1, queryLength: 2, headDim: 3 };
    const options = { query: none, key: none, value: none, neighbors: new Int32Array() };
    expect(library.centroidAttentionSync({ ...options, shape: noBatch })).toEqual(none);
    const key = ramp(6);
    const noCentroid = { batch: 1, heads: 1, queryLength: 0, keyLength: 2, headDim: 3 };
    const call = { ...options, key, value: key, shape: noCentroid };
    expect(library.centroidAttentionSync(call)).toEqual(none);
  });

  test('neighbors that give none are named, not neighborCount', () => {
    for (const neighbors of [new Int32Array(), new Int32Array(7), [0, 1, 2, 3, 4, 5], 'all']) {
      const call = () => library.centroidAttentionSync({ ...attention(), neighbors });
      const code = neighbors instanceof Int32Array ? 'ERR_SHAPE_MISMATCH' : 'ERR_INVALID_ARG_TYPE';
      expect(call).toThrow(expect.objectContaining({ code, argument: 'neighbors' }));
    }
  });

  test('lshPlanes writes to out', () => {
    const out = new Float32Array(16);
    expect(library.lshPlanesSync({ bits: 4, dim: 3, out })).toBe(out);
    expect(out).toEqual(library.lshPlanesSync({ bits: 4, dim: 3 }));
  });
});

describe('edges', () => {
  const cast = () => ({
    ...attention(),
    surrogates: ramp(12),
    gate: ramp(6),
    clusters: 2,
    clusterSize: 3,
  });

  test('CAST takes queryLengths that equal keyLengths, and no others', () => {
    const lengths = () => Int32Array.of(4);
    const expected = library.castAttentionSync({ ...cast(), keyLengths: lengths() });
    const both = { ...cast(), keyLengths: lengths(), queryLengths: lengths() };
    expect(library.castAttentionSync(both)).toEqual(expected);
    expect(() => library.castAttentionSync({ ...cast(), queryLengths: lengths() })).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED', argument: 'queryLengths' }),
    );
  });

  test.each([1e-30, 1e-39, 1e-45, 1e-60])('temperature %d is the hard limit', (temperature) => {
    const options = { inputs: ramp(18), shape: rows, centroids: 2, similarity: 'dot' };
    const hard = library.centroidPoolSync({ ...options, temperature: 0 });
    expect(library.centroidPoolSync({ ...options, temperature })).toEqual(hard);
  });

  test('an index outside its range is told with the range', () => {
    const labels = Int32Array.of(0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0);
    const options = { ...attention(), clusters: 2, labels };
    expect(() => library.clusteredAttentionSync(options)).toThrow(
      'labels must be filled with integers from -1 to 1, received 2 at index 2',
    );
  });
});
