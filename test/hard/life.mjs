// Asynchronous calls while their inputs are taken away, aborted at random moments, from several
// workers at once, and in processes that exit meanwhile.
//   node test/hard/life.mjs [rounds=2] [aborts=40] [exits=6] [seed=1]

import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { isDeepStrictEqual } from 'node:util';
import { Worker } from 'node:worker_threads';
import { generator } from '../lib/support/data.mjs';
import { inputArrays, names, operations } from '../lib/support/operations.mjs';
import { fail, figure, number } from './support/program.mjs';

const require = createRequire(import.meta.url);
const entry = require.resolve('../../dist/index.js');
const library = require(entry);
const random = generator(number('seed', 1));
const pick = (list) => list[Math.floor(random() * list.length)];

/** In memory that can be resized. */
function resizable(array) {
  const buffer = new ArrayBuffer(array.byteLength, { maxByteLength: 2 * array.byteLength + 8 });
  const copy = new array.constructor(buffer);
  copy.set(array);
  return copy;
}

const DAMAGE = {
  fill: (array) => array.fill(typeof array[0] === 'bigint' ? 5n : 1),
  transfer: ({ buffer }) => structuredClone(buffer, { transfer: [buffer] }),
  shrink: ({ buffer }) => buffer.resize(0),
  grow: ({ buffer }) => buffer.resize(buffer.maxByteLength),
};

/** The bits of the bytes that were there at the call. */
async function damageInputs(rounds) {
  let count = 0;
  for (const name of names) {
    const expected = library[`${name}Sync`](operations[name].typical());
    for (let round = 0; round < rounds; ++round) {
      for (const [kind, damage] of Object.entries(DAMAGE)) {
        const options = operations[name].typical();
        const inputs = inputArrays(options);
        for (const [input, array] of inputs) options[input] = resizable(array);
        const pending = library[name](options);
        for (const [input] of inputs) damage(options[input]);
        if (!isDeepStrictEqual(await pending, expected)) fail(`${name}: ${kind} after the call`);
        count += 1;
      }
    }
  }
  figure('life: calls whose inputs were taken away', count);
}

/** Aborts at random moments; calls beside them are right. */
async function abortAtRandom(count) {
  let aborted = 0;
  for (let i = 0; i < count; ++i) {
    const name = pick(names);
    const { typical } = operations[name];
    const controller = new AbortController();
    const pending = library[name]({ ...typical(), signal: controller.signal });
    const beside = library[name](typical());
    const moment = random();
    if (moment < 0.4) controller.abort('stop');
    else if (moment < 0.7) setImmediate(() => controller.abort('stop'));
    else setTimeout(() => controller.abort('stop'), random() * 4);
    const expected = library[`${name}Sync`](typical());
    try {
      if (!isDeepStrictEqual(await pending, expected)) fail(`${name}: wrong beside an abort`);
    } catch (reason) {
      aborted += 1;
      if (reason !== 'stop') fail(`${name}: aborted with ${reason?.stack ?? reason}`);
    }
    if (!isDeepStrictEqual(await beside, expected)) fail(`${name}: wrong beside an aborted call`);
  }
  figure('life: aborts at random moments', count);
  figure('life: of these in time to end the call', aborted);
}

/** Eight calls at once from each of four workers. */
async function callFromWorkers(rounds) {
  const script = `
    const ca = require(${JSON.stringify(entry)});
    const { parentPort, workerData } = require('node:worker_threads');
    const all = [];
    for (let i = 0; i < 8; ++i) all.push(ca.attention(workerData));
    Promise.all(all).then((results) => parentPort.postMessage(results));
  `;
  const options = operations.attention.typical();
  const expected = library.attentionSync(options);
  for (let round = 0; round < rounds; ++round) {
    const workers = Array.from(
      { length: 4 },
      () => new Worker(script, { eval: true, workerData: options }),
    );
    const results = await Promise.all(
      workers.map(
        (worker) => new Promise((done, no) => worker.once('message', done).once('error', no)),
      ),
    );
    for (const each of results.flat()) {
      if (!isDeepStrictEqual(each, expected)) fail('a worker computes something else');
    }
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
  figure('life: calls from four workers, eight at once', rounds * 32);
}

/** A process that ends in the middle of work ends with its own code. */
function exitDuringWork(count) {
  for (let i = 0; i < count; ++i) {
    const script = `
      const ca = require(${JSON.stringify(entry)});
      ca.setNumThreads(4);
      const shape = { batch: 1, heads: 2, queryLength: 1500, headDim: 32 };
      const data = new Float32Array(2 * 1500 * 32).fill(0.5);
      for (let i = 0; i < 5; ++i) ca.attention({ query: data, key: data, value: data, shape });
      setTimeout(() => process.exit(7), ${Math.floor(random() * 25)});
    `;
    const { status, signal, stderr } = spawnSync(process.execPath, ['-e', script]);
    if (status !== 7) fail(`exit during work: ${signal ?? status} ${stderr}`);
  }
  figure('life: processes that exit during work', count);
}

await damageInputs(number('rounds', 2));
await abortAtRandom(number('aborts', 40));
await callFromWorkers(number('rounds', 2));
exitDuringWork(number('exits', 6));
