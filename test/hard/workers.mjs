// Worker threads that end at random moments of their calls, in several processes.
//   node test/hard/workers.mjs [terminations=24] [processes=2] [seed=1]

import { Worker } from 'node:worker_threads';
import { createRequire } from 'node:module';
import { generator } from '../lib/support/data.mjs';
import { fail, figure, figuresOf, inParallel, number, runChild, text } from './support/program.mjs';

const SELF = new URL(import.meta.url);
const entry = createRequire(import.meta.url).resolve('../../dist/index.js');

/** What a worker does without end: calls of both forms, gradients, aborts. */
const BUSY = `
  const ca = require(${JSON.stringify(entry)});
  const { parentPort } = require('node:worker_threads');
  const shape = { batch: 1, heads: 2, queryLength: 300, headDim: 16 };
  const data = new Float32Array(2 * 300 * 16).fill(0.5);
  const options = () => ({ query: data, key: data, value: data, shape });
  const calls = [
    () => ca.attention(options()),
    () => ca.attentionSync(options()),
    () => ca.improvedClusteredAttention({ ...options(), clusters: 9 }),
    () => ca.clusteredAttentionSync({ ...options(), clusters: 9 }),
    () => ca.centroidAttentionVjp(options()).then((state) => state.backward(data)),
    () => ca.kMeans({ inputs: data, shape: { batch: 2, length: 300, dim: 16 }, clusters: 5 }),
    () => {
      const controller = new AbortController();
      const pending = ca.attention({ ...options(), signal: controller.signal });
      setImmediate(() => controller.abort());
      return pending.catch(() => {});
    },
  ];
  async function work(turn) {
    for (;; ++turn) await calls[turn % calls.length]();
  }
  for (let first = 0; first < 4; ++first) work(first);
  parentPort.postMessage('busy');
`;

/** Terminates workers one after the other; what it leaves behind must still compute. */
async function terminateWorkers(count, seed) {
  const random = generator(seed);
  for (let i = 0; i < count; ++i) {
    const worker = new Worker(BUSY, { eval: true });
    const broken = new Promise((_, reject) => worker.once('error', reject));
    if (i % 4 !== 0)
      await Promise.race([new Promise((done) => worker.once('message', done)), broken]);
    const moment = random() < 0.3 ? 0 : random() * 30;
    await Promise.race([new Promise((done) => setTimeout(done, moment)), broken]);
    await worker.terminate();
  }
  figure('workers: terminated in the middle of calls', count);
}

/** The addon is loaded by workers alone, and unloaded with the last of them. */
async function loadInWorkersOnly(count) {
  const once = `require(${JSON.stringify(entry)}).topKSync({
    scores: Float32Array.of(3, 1, 2), k: 2, shape: { rows: 1, columns: 3 } });`;
  for (let i = 0; i < count; ++i) {
    const worker = new Worker(once, { eval: true });
    const code = await new Promise((done, broken) =>
      worker.once('exit', done).once('error', broken),
    );
    if (code !== 0) fail(`a worker that loads the addon alone left with ${code}`);
  }
  figure('workers: alone with the addon', count);
}

async function child() {
  await loadInWorkersOnly(number('alone', 4));
  await terminateWorkers(number('terminations', 10), number('seed', 1));
  const { attentionSync, attention } = createRequire(import.meta.url)(entry);
  const data = new Float32Array(64).fill(0.25);
  const call = { query: data, key: data, value: data };
  const shape = { batch: 1, heads: 1, queryLength: 16, headDim: 4 };
  const expected = attentionSync({ ...call, shape });
  const actual = await attention({ ...call, shape });
  if (!expected.every((value, i) => value === actual[i])) fail('the process computes wrongly');
}

async function main() {
  const processes = number('processes', 2);
  const each = Math.ceil(number('terminations', 24) / processes);
  const figures = new Map();
  const seeds = Array.from({ length: processes }, (_, i) => number('seed', 1) * 1000 + i);
  await inParallel(seeds, async (seed) => {
    const parameters = { child: 1, terminations: each, seed };
    const { code, signal, output } = await runChild(SELF, parameters);
    if (code !== 0) fail(`workers seed=${seed}: ${signal ?? code}\n${output}`);
    figuresOf(output, figures);
  });
  for (const [name, value] of figures) figure(name, value);
}

await (text('child') ? child() : main());
