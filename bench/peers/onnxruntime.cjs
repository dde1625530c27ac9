'use strict';
// Times this package beside onnxruntime's fused attention on the CPU: the same arrays, interleaved
// in one process, medians. The peer is no dependency; install it for the occasion:
//   npm install --no-save --ignore-scripts onnxruntime-node@1.30.0 onnx-proto
//   node bench/peers/onnxruntime.cjs [--lengths 1024,4096] [--threads 1,2] [--rounds 9]

const { setTimeout } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const { onnx } = require('onnx-proto');
const ort = require('onnxruntime-node');
const library = require('../../dist/index.js');

const HEADS = 8;
const DIM = 64;

/** One com.microsoft.MultiHeadAttention node over (1, length, heads·dim). */
function model(length) {
  const tensor = (name) => ({
    name,
    type: {
      tensorType: {
        elemType: 1,
        shape: { dim: [1, length, HEADS * DIM].map((dimValue) => ({ dimValue })) },
      },
    },
  });
  const node = {
    opType: 'MultiHeadAttention',
    domain: 'com.microsoft',
    input: ['query', 'key', 'value'],
    output: ['output'],
    attribute: [{ name: 'num_heads', type: 2, i: HEADS }],
  };
  const graph = {
    name: 'attention',
    node: [node],
    input: ['query', 'key', 'value'].map(tensor),
    output: [tensor('output')],
  };
  const opsetImport = [
    { domain: '', version: 17 },
    { domain: 'com.microsoft', version: 1 },
  ];
  return onnx.ModelProto.encode({ irVersion: 8, opsetImport, graph }).finish();
}

function normal() {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
  return radius * Math.cos(2 * Math.PI * Math.random());
}

const gaussian = (count) => Float32Array.from({ length: count }, normal);

function relativeError(actual, expected) {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; ++i) {
    error += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return Math.sqrt(error / norm);
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function compare(length, threads, rounds) {
  const session = await ort.InferenceSession.create(Buffer.from(model(length)), {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
  });
  library.setNumThreads(threads);
  const [query, key, value] = [0, 1, 2].map(() => gaussian(length * HEADS * DIM));
  const tensor = (data) => new ort.Tensor('float32', data, [1, length, HEADS * DIM]);
  const feeds = { query: tensor(query), key: tensor(key), value: tensor(value) };
  const shape = { batch: 1, heads: HEADS, queryLength: length, headDim: DIM };
  const options = { query, key, value, shape, layout: 'BLHD', out: new Float32Array(query.length) };
  const clustered = { ...options, clusters: 100 };
  const methods = {
    onnxruntime: async () => (await session.run(feeds)).output.data,
    attention: () => library.attentionSync(options),
    clustered: () => library.clusteredAttentionSync(clustered),
    improved: () => library.improvedClusteredAttentionSync({ ...clustered, topK: 32 }),
    euclidean: () =>
      library.improvedClusteredAttentionSync({ ...clustered, topK: 32, grouping: 'euclidean' }),
  };
  const expected = await methods.onnxruntime();
  const error = relativeError(methods.attention(), expected);
  if (!(error < 1e-5)) throw new Error(`the two disagree by ${error}`);
  const times = Object.fromEntries(Object.keys(methods).map((name) => [name, []]));
  for (let round = 0; round < rounds; ++round) {
    for (const [name, run] of Object.entries(methods)) {
      await setTimeout(30); // onnxruntime's threads spin for a while after a run
      const start = process.hrtime.bigint();
      await run(); // one after the other: they must not compete
      times[name].push(Number(process.hrtime.bigint() - start) / 1e6);
    }
  }
  const medians = Object.entries(times).map(([name, values]) => [name, median(values)]);
  const peer = medians[0][1];
  const cells = medians.map(
    ([name, ms]) => `${name} ${ms.toFixed(2)} ms (${(peer / ms).toFixed(2)}×)`,
  );
  console.log(`N=${length}, ${threads} thread${threads > 1 ? 's' : ''}: ${cells.join(', ')}`);
}

async function main() {
  const { values } = parseArgs({
    options: {
      lengths: { type: 'string', default: '1024,4096' },
      threads: { type: 'string', default: '1,2' },
      rounds: { type: 'string', default: '9' },
    },
  });
  for (const length of values.lengths.split(',').map(Number)) {
    for (const threads of values.threads.split(',').map(Number)) {
      await compare(length, threads, Number(values.rounds));
    }
  }
}

main();
