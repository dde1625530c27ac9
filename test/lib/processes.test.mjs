// The life of the process and of worker threads around the addon.

import { spawn } from 'node:child_process';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { operations } from './support/operations.mjs';
import { entry, required } from './support/package.mjs';

const load = `const ca = require(${JSON.stringify(entry)});`;
const longCall = `
  const shape = { batch: 1, heads: 4, queryLength: 3000, headDim: 64 };
  const data = new Float32Array(4 * 3000 * 64).fill(0.5);
  const long = () => ca.attention({ query: data, key: data, value: data, shape });
`;
const shortCall = `
  const short = () => ca.attention({
    query: Float32Array.of(1, 2), key: Float32Array.of(1, 2), value: Float32Array.of(3, 4),
    shape: { batch: 1, heads: 1, queryLength: 2, headDim: 1 },
  });
`;

/** Runs a script in a fresh Node; a script that does not end within half a minute is killed. */
function run(script, environment = {}, flags = []) {
  return new Promise((resolve) => {
    const text = `${load}${longCall}${shortCall}${script}`;
    const child = spawn(process.execPath, [...flags, '-e', text], {
      env: { ...process.env, ...environment },
      timeout: 30_000,
      killSignal: 'SIGKILL',
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => (output += data));
    }
    child.on('close', (code, signal) => resolve({ code, signal, output: output.trim() }));
  });
}

const clean = (output = '') => ({ code: 0, signal: null, output });

describe('a process', () => {
  test('that only loads the package exits by itself', async () => {
    expect(await run('')).toEqual(clean());
  });

  test('that has computed in both forms exits by itself', async () => {
    const script = `ca.setNumThreads(4); short().then((output) => console.log(output.length));`;
    expect(await run(script)).toEqual(clean('2'));
  });

  test('waits for pending calls', async () => {
    expect(await run(`long().then(() => console.log('done'));`)).toEqual(clean('done'));
  });

  test('ends when its endless call is aborted: the work behind it has stopped', async () => {
    const script = `
      const much = new Float32Array(300000 * 8).fill(0.5);
      const controller = new AbortController();
      ca.attention({
        query: much, key: much, value: much, signal: controller.signal,
        shape: { batch: 1, heads: 1, queryLength: 300000, headDim: 8 },
      }).catch((reason) => console.log(reason));
      setTimeout(() => controller.abort('aborted'), 20);
    `;
    expect(await run(script)).toEqual(clean('aborted'));
  });

  test.each(['immediately', 'while they compute'])(
    'leaves with pending calls: %s',
    async (when) => {
      const exit =
        when === 'immediately' ? 'process.exit(7)' : 'setTimeout(() => process.exit(7), 20)';
      const script = `ca.setNumThreads(4); for (let i = 0; i < 6; ++i) long(); ${exit};`;
      expect(await run(script)).toEqual({ code: 7, signal: null, output: '' });
    },
  );

  test('dies by its own exception with pending calls', async () => {
    const { code, signal } = await run(
      `long(); setTimeout(() => { throw new Error('own'); }, 20);`,
    );
    expect([code, signal]).toEqual([1, null]);
  });

  test.each([1, 3])('takes CLUSTER_ATTENTION_NUM_THREADS=%d', async (count) => {
    const environment = { CLUSTER_ATTENTION_NUM_THREADS: String(count) };
    expect(await run('console.log(ca.getNumThreads());', environment)).toEqual(clean(`${count}`));
  });

  test.each([' 17', '+17', '17 ', '17x', '0x11', '17.0'])(
    'ignores CLUSTER_ATTENTION_NUM_THREADS=%o: more than digits',
    async (value) => {
      const count = (environment) => run('console.log(ca.getNumThreads());', environment);
      const unset = await count({ CLUSTER_ATTENTION_NUM_THREADS: '' });
      expect(await count({ CLUSTER_ATTENTION_NUM_THREADS: value })).toEqual(unset);
    },
  );

  test.each(['', '0', '-4', 'many', '99999999999999999999'])(
    'is not upset by CLUSTER_ATTENTION_NUM_THREADS=%o',
    async (value) => {
      const script = `short().then(() => console.log(ca.getNumThreads() >= 1));`;
      const environment = { CLUSTER_ATTENTION_NUM_THREADS: value };
      expect(await run(script, environment)).toEqual(clean('true'));
    },
  );

  test('computes with frozen intrinsics, in both forms and gradients', async () => {
    const script = `
      const rows = Float32Array.of(3, 4);
      const product = { a: rows, b: rows, shape: { rows: 1, columns: 1, depth: 2 } };
      const out = new Float32Array(1);
      const say = async ({ matmul, matmulSync }) => {
        const sum = await matmul({ ...product, out, accumulate: true });
        console.log(sum === out, sum[0], matmulSync(product)[0]);
      };
      (async () => {
        await say(ca);
        await say(await import(${JSON.stringify(entry)}));
        const shape = { batch: 1, heads: 1, queryLength: 2, headDim: 1 };
        const { backward } = await ca.attentionVjp({ query: rows, key: rows, value: rows, shape });
        console.log((await backward(rows)).value.length);
      })();
    `;
    const flags = ['--frozen-intrinsics', '--no-warnings'];
    expect(await run(script, {}, flags)).toEqual(clean('true 25 25\ntrue 50 25\n2'));
  });

  test('works after the package was loaded twice', async () => {
    const script = `
      delete require.cache[${JSON.stringify(entry)}];
      const again = require(${JSON.stringify(entry)});
      console.log(again !== ca, again.getNumThreads() === ca.getNumThreads());
      short().then(() => {});
    `;
    expect(await run(script)).toEqual(clean('true true'));
  });
});

const inWorker = (body) => `
  const { Worker, parentPort } = require('node:worker_threads');
  const body = ${JSON.stringify(`${load}${longCall}${shortCall}const { parentPort } = require('node:worker_threads');${body}`)};
`;
/** Like run(), but the package is loaded in workers alone. */
function runWithoutMain(script) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['-e', script], {
      timeout: 30_000,
      killSignal: 'SIGKILL',
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => (output += data));
    }
    child.on('close', (code, signal) => resolve({ code, signal, output: output.trim() }));
  });
}

describe('workers', () => {
  test('compute what the main thread computes', async () => {
    const options = operations.attention.typical();
    const script = `
      const { parentPort, workerData } = require('node:worker_threads');
      ${load}
      ca.attention(workerData).then((output) => parentPort.postMessage([output, ca.attentionSync(workerData)]));
    `;
    const workers = Array.from(
      { length: 3 },
      () => new Worker(script, { eval: true, workerData: options }),
    );
    const expected = required.attentionSync(options);
    const results = workers.map(
      (worker) =>
        new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)),
    );
    for (const result of await Promise.all(results)) expect(result).toEqual([expected, expected]);
    await Promise.all(workers.map((worker) => worker.terminate()));
  });

  test('terminated again and again in the middle of calls', async () => {
    const script = `
      ${load}${longCall}
      const { parentPort } = require('node:worker_threads');
      for (let i = 0; i < 3; ++i) long();
      parentPort.postMessage('started');
    `;
    for (let round = 0; round < 12; ++round) {
      const worker = new Worker(script, { eval: true });
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
      await worker.terminate();
    }
    const { minimal } = operations.attention;
    expect(await required.attention(minimal())).toEqual(required.attentionSync(minimal()));
  });

  test('terminated during a synchronous call', async () => {
    const script = `
      ${load}${longCall}
      const { parentPort } = require('node:worker_threads');
      parentPort.postMessage('started');
      for (;;) ca.attentionSync({ query: data, key: data, value: data, shape });
    `;
    const worker = new Worker(script, { eval: true });
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    await worker.terminate();
  });

  test('the addon may come and go with a worker that alone has loaded it', async () => {
    const script = `${inWorker(`short().then(() => parentPort.postMessage('ok'));`)}
      (async () => {
        for (let i = 0; i < 3; ++i) {
          const worker = new Worker(body, { eval: true });
          worker.on('message', (text) => console.log(text));
          await new Promise((resolve) => worker.on('exit', resolve));
        }
      })();
    `;
    expect(await runWithoutMain(script)).toEqual(clean('ok\nok\nok'));
  });

  test('so also when it is terminated with calls pending', async () => {
    const script = `${inWorker(`long(); long(); parentPort.postMessage('started');`)}
      (async () => {
        for (let i = 0; i < 5; ++i) {
          const worker = new Worker(body, { eval: true });
          await new Promise((resolve) => worker.on('message', resolve));
          await worker.terminate();
        }
        console.log('alive');
      })();
    `;
    expect(await runWithoutMain(script)).toEqual(clean('alive'));
  });

  test('process.exit() in the main thread while workers compute', async () => {
    const script = `${inWorker(`long(); long(); parentPort.postMessage('started');`)}
      for (let i = 0; i < 2; ++i) {
        new Worker(body, { eval: true }).on('message', () => setTimeout(() => process.exit(5), 10));
      }
    `;
    expect(await runWithoutMain(script)).toEqual({ code: 5, signal: null, output: '' });
  });
});
