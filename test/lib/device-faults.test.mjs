// What can go wrong with devices, each in a process of its own: the reasons why there is none, and
// the faults of one that was there. The stand-in tells at the end what was left behind.

import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runOnDevice, stub, useStub } from './support/device.mjs';

useStub();

let folder;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'cluster-attention-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A file that is in place of the backend. */
function fileOf(make) {
  const file = path.join(folder, `${Math.random().toString(36).slice(2)}.so`);
  make(file);
  return file;
}

const truncated = (share) => () =>
  fileOf((file) => {
    copyFileSync(stub, file);
    truncateSync(file, Math.floor(readFileSync(stub).length * share));
  });

/** A library of the system, which knows nothing of this package. */
const foreign = () =>
  process.report.getReport().sharedObjects.find((name) => /libm\.so/.test(name));

describe('why there is no CUDA', () => {
  const everything = `
    const { cuda } = ca.info();
    const reasons = [
      cuda.available, cuda.reason,
      attempt(() => ca.attentionSync({ ...plain(), device: 'cuda' })),
      attempt(() => DeviceTensor.from(new Float32Array(2))),
      attempt(() => ca.hashSync({ device: 'cuda', inputs: new Float32Array(2), planes: new Float32Array(3), shape: { rows: 1, dim: 2, bits: 1 } })),
      attempt(() => ca.matmulSync({ device: 'cuda', a: new Float32Array(1), b: new Float32Array(1), shape: { rows: 1, columns: 1, depth: 1 } })),
    ];
    (async () => {
      reasons.push(await ca.attention({ ...plain(), device: 'cuda' }).catch(said));
      reasons.push(await DeviceTensor.fromAsync(new Float32Array(2)).catch(said));
      const cpu = ca.attentionSync({ ...plain(), device: 'cpu' });
      const auto = [ca.attentionSync(plain()), await ca.attention({ ...plain(), device: 'auto' })];
      console.log(JSON.stringify({ reasons, works: auto.every((each) => each.join() === cpu.join()) }));
    })();
  `;

  test.each([
    ['a missing file', () => path.join(folder, 'none.so'), /no CUDA backend.*none\.so/],
    ['a relative path', () => 'cluster_attention_cuda.so', /path of the CUDA backend/],
    ['an empty file', () => fileOf((file) => writeFileSync(file, '')), /truncated/],
    ['a file cut at its beginning', truncated(0.001), /truncated/],
    ['a file cut in the middle', truncated(0.5), /truncated/],
    ['a file cut before its end', truncated(0.999), /truncated/],
    [
      'a file of something else',
      () => fileOf((file) => writeFileSync(file, 'x'.repeat(999))),
      /does not load: .*invalid ELF header/,
    ],
    ['a library that lacks the function', foreign, /lacks cluster_attention_cuda_backend/],
    ['a backend of another version', () => stub, /another version/, 'other_version=1'],
    [
      'no driver',
      () => stub,
      /driver version is insufficient.*cudaErrorInsufficientDriver/,
      'no_driver=1',
    ],
  ])('%s', async (_what, backend, reason, wishes) => {
    const { code, output } = await runOnDevice(everything, { backend: backend(), wishes });
    expect(code, output).toBe(0);
    const { reasons, works } = JSON.parse(output);
    expect(reasons[0]).toBe(false);
    expect(reasons[1]).toMatch(reason);
    for (const [i, said] of reasons.slice(2).entries()) {
      // No CPU has a DeviceTensor, and to it 'auto' is a GPU too.
      const expected = i === 1 || i === 5 ? 'one that can be had' : "'auto' or 'cpu'";
      expect(said).toBe(
        `ERR_CUDA_UNAVAILABLE: device must be ${expected}, received 'cuda:0': ${reasons[1]}`,
      );
    }
    expect(works).toBe(true);
  });

  test('what the backend knows is told without a driver too', async () => {
    const script = `const { targets, runtime, driver, devices } = ca.info().cuda;
      console.log(JSON.stringify([targets, runtime, driver ?? 'none', devices]));`;
    const { output } = await runOnDevice(script, { wishes: 'no_driver=1' });
    expect(JSON.parse(output)).toEqual([['75', '90a'], '13.0', 'none', []]);
  });

  test('no code for one device leaves the others', async () => {
    const script = `
      console.log(attempt(() => ca.attentionSync({ ...plain(), device: 'cuda:2' })));
      console.log(attempt(() => ca.attentionSync({ ...plain(), device: 'cuda:3' })));
      console.log(ca.attentionSync({ ...plain(), device: 'cuda:1' }).length);
    `;
    const { output } = await runOnDevice(script, { wishes: 'report=1' });
    const [second, third, ...rest] = output.split('\n');
    expect(second).toMatch(/ERR_CUDA_UNAVAILABLE.*no code for Stub 2.*6\.0.*75,90a/);
    expect(third).toMatch(/ERR_CUDA_UNAVAILABLE.*no CUDA device has this number/);
    expect(rest).toEqual(['2', 'stub: 0 bytes, 0 sessions, 1 operations']);
  });

  test("device: 'cpu' and 'auto' with plain arrays never open the backend", async () => {
    const script = `
      const before = process.report.getReport().sharedObjects.length;
      ca.attentionSync(plain());
      ca.attentionSync({ ...plain(), device: 'cpu' });
      const opened = process.report.getReport().sharedObjects.filter((name) => /cluster_attention_cuda/.test(name));
      console.log(opened.length, before > 0);
    `;
    expect((await runOnDevice(script)).output).toBe('0 true');
  });
});

describe('out of memory', () => {
  // Plain arrays go to the device in one block; of tensors there are three inputs and two results.
  const plain = `ca.attentionSync({ ...plain(), device: 'cuda' }).join()`;
  const moved = `ca.attentionSync({ ...moved(), details: true }).output.toArraySync().join()`;

  test.each([
    ['plain arrays', 1, plain],
    ...[1, 2, 3, 4, 5].map((k) => ['DeviceTensors', k, moved]),
  ])('%s, allocation %d: nothing is leaked and the next call works', async (_what, k, call) => {
    const script = `
      console.log(attempt(() => ${call}));
      console.log(attempt(() => ${call}) === ca.attentionSync(plain()).join());
    `;
    const { code, output } = await runOnDevice(script, { wishes: `out_of_memory=${k},report=1` });
    const [first, second, end] = output.split('\n');
    expect(first).toMatch(/^ERR_OUT_OF_MEMORY: out of memory for .* on cuda:0$/);
    expect([code, second]).toEqual([0, 'true']);
    expect(end).toBe('stub: 0 bytes, 0 sessions, 1 operations');
  });

  test('so in the asynchronous form', async () => {
    const script = `
      (async () => {
        console.log(await ca.attention({ ...plain(), device: 'cuda' }).catch(said));
        console.log((await ca.attention({ ...plain(), device: 'cuda' })).length);
      })();
    `;
    const { output } = await runOnDevice(script, { wishes: 'out_of_memory=1,report=1' });
    expect(output).toBe(
      'ERR_OUT_OF_MEMORY: out of memory for attention on cuda:0\n2\nstub: 0 bytes, 0 sessions, 1 operations',
    );
  });
});

describe('a device that fails', () => {
  test('once: that call has failed, the next one works', async () => {
    const script = `
      console.log(attempt(() => ca.attentionSync(moved())));
      console.log(ca.attentionSync(moved()).length);
    `;
    const { output } = await runOnDevice(script, { wishes: 'error=1,report=1' });
    const [first, ...rest] = output.split('\n');
    expect(first).toMatch(/^ERR_CUDA_UNAVAILABLE: .*cudaErrorLaunchOutOfResources$/);
    expect(rest).toEqual(['2', 'stub: 0 bytes, 0 sessions, 2 operations']);
  });

  test('for good: it is lost at once, the other device and the CPU work', async () => {
    const script = `
      const tensors = moved();
      const out = new Float32Array(2).fill(5);
      console.log(attempt(() => ca.attentionSync({ ...plain(), device: 'cuda', out })), out.join());
      (async () => {
        const after = [
          attempt(() => ca.attentionSync(tensors)),
          attempt(() => ca.attentionSync({ ...plain(), device: 'cuda:0' })),
          attempt(() => tensors.query.toArraySync()),
          attempt(() => DeviceTensor.from(new Float32Array(2))),
          await ca.attention(tensors).catch(said),
          await tensors.query.toArray().catch(said),
          ca.info().cuda.devices[0].reason,
        ];
        console.log(JSON.stringify(after));
        const fine = [plain(), { ...plain(), device: 'cpu' }, { ...plain(), device: 'cuda:1' }];
        console.log(fine.map((options) => ca.attentionSync(options).length).join());
        console.log(ca.attentionSync(moved('cuda:1')).length);
      })();
    `;
    const { code, output } = await runOnDevice(script, { wishes: 'lost=1,report=1' });
    const [first, after, fine, other, end] = output.split('\n');
    expect(first).toMatch(/^ERR_DEVICE_LOST: .*'cuda:0'.*cudaErrorIllegalAddress.* 5,5$/);
    for (const said of JSON.parse(after).slice(0, -1)) expect(said).toMatch(/^ERR_DEVICE_LOST/);
    expect(JSON.parse(after).at(-1)).toMatch(/cudaErrorIllegalAddress/);
    expect([code, fine, other, end]).toEqual([
      0,
      '2,2,2',
      '2',
      'stub: 0 bytes, 0 sessions, 3 operations',
    ]);
  });

  test('while a result is copied back: a given out holds NaN, not half of the result', async () => {
    const script = `
      const out = new Float32Array(2).fill(5);
      const options = { ...plain(), device: 'cuda', out };
      console.log(attempt(() => ca.attentionSync({ ...options, details: true })), out.join());
      console.log(ca.attentionSync(options) === out, out.join() === ca.attentionSync(plain()).join());
    `;
    for (const torn of [1, 2]) {
      const { output } = await runOnDevice(script, { wishes: `torn=${torn}` });
      const [first, second] = output.split('\n');
      expect(first).toMatch(/^ERR_CUDA_UNAVAILABLE: .*cudaErrorInvalidValue NaN,NaN$/);
      expect(second).toBe('true true');
    }
  });

  test('index faults come from the device with their place', async () => {
    const script = `
      const options = { inputs: new Float32Array(4), labels: Int32Array.of(0, 1, 5, 1), shape: { batch: 1, length: 4, dim: 1 }, clusters: 2 };
      console.log(attempt(() => ca.aggregateSync({ ...options, device: 'cuda' })));
      const { inputs, labels } = options;
      console.log(attempt(() => ca.aggregateSync({ ...options, inputs: DeviceTensor.from(inputs), labels: DeviceTensor.from(labels) })));
    `;
    const [plain, moved] = (await runOnDevice(script)).output.split('\n');
    expect(plain).toMatch(/^ERR_OUT_OF_RANGE: labels .* received 5 at index 2$/);
    expect(moved).toMatch(/^ERR_OUT_OF_RANGE: labels .* received .* at index 2$/);
  });
});

describe('while a device is at work', () => {
  const slow = { wishes: 'slow=300,report=1' };

  test('the event loop turns, and no thread of the pool is taken', async () => {
    const script = `
      ca.setNumThreads(1);
      const order = [];
      const calls = [moved(), moved(), { ...plain(), device: 'cuda' }].map((options) =>
        ca.attention(options).then(() => order.push('device')));
      let turns = 0;
      const turn = () => { turns += 1; if (order.length < 4) setImmediate(turn); };
      turn();
      ca.attention(plain()).then(() => order.push('cpu'));
      Promise.all(calls).then(() => console.log(order.join(), turns > 10));
    `;
    const { output } = await runOnDevice(script, slow);
    expect(output).toBe('cpu,device,device,device true\nstub: 0 bytes, 0 sessions, 3 operations');
  });

  test('a signal ends the call at once, and its work soon', async () => {
    const script = `
      const controller = new AbortController();
      const calls = [moved(), { ...plain(), device: 'cuda' }].map((options) =>
        ca.attention({ ...options, signal: controller.signal }).catch((reason) => reason));
      const begin = Date.now();
      setTimeout(() => controller.abort('enough'), 20);
      Promise.all(calls).then((reasons) => {
        console.log(reasons.join(), Date.now() - begin < 10_000);
      });
    `;
    const { code, output } = await runOnDevice(script, { wishes: 'slow=20000,report=1' });
    expect([code, output]).toEqual([
      0,
      'enough,enough true\nstub: 0 bytes, 0 sessions, 2 operations',
    ]);
  });

  test('a signal is heard after the kernels that write the out of the call', async () => {
    const script = `
      const controller = new AbortController();
      const tensors = moved();
      const out = ca.attentionSync(tensors);
      const other = ca.DeviceTensor.from(out.toArraySync().fill(7), { shape: out.shape });
      ca.attention({ ...tensors, out: other, signal: controller.signal }).catch((reason) => {
        const then = other.toArraySync().join();
        setTimeout(() => console.log(reason, then === other.toArraySync().join()), 600);
      });
      setTimeout(() => controller.abort('enough'), 20);
    `;
    const { output } = await runOnDevice(script, { wishes: 'deaf=1000,report=1' });
    expect(output).toBe('enough true\nstub: 0 bytes, 0 sessions, 2 operations');
  });

  test('tensors may be disposed of', async () => {
    const script = `
      const tensors = moved();
      const pending = ca.attention(tensors);
      setTimeout(() => {
        for (const name of ['query', 'key', 'value']) tensors[name].dispose();
      }, 20);
      pending.then((output) => console.log(output.toArraySync().join() === ca.attentionSync(plain()).join()));
    `;
    const { output } = await runOnDevice(script, slow);
    expect(output).toBe('true\nstub: 0 bytes, 0 sessions, 1 operations');
  });

  test('the process may exit', async () => {
    const script = `
      for (let i = 0; i < 5; ++i) ca.attention(moved());
      setTimeout(() => process.exit(7), 20);
    `;
    const { code, signal, output } = await runOnDevice(script, { wishes: 'slow=20000,report=1' });
    expect([code, signal]).toEqual([7, null]);
    // Node runs no cleanup then: the driver takes back what the process had.
    expect(output).toMatch(/^stub: \d+ bytes, \d sessions, \d operations$/);
  });

  test('workers may be terminated, again and again', async () => {
    const script = `
      const { Worker } = require('node:worker_threads');
      const body = 'const ca = require(' + JSON.stringify(require.resolve(process.env.PACKAGE)) + ');' + \`
        const { parentPort } = require('node:worker_threads');
        const shape = { batch: 1, heads: 1, queryLength: 2, headDim: 1 };
        const array = () => ca.DeviceTensor.from(Float32Array.of(1, 2));
        for (let i = 0; i < 4; ++i) ca.attention({ query: array(), key: array(), value: array(), shape });
        parentPort.postMessage('started');
      \`;
      (async () => {
        for (let round = 0; round < 6; ++round) {
          const worker = new Worker(body, { eval: true });
          await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
          await worker.terminate();
        }
        console.log('alive');
      })();
    `.replace('process.env.PACKAGE', JSON.stringify(path.resolve(import.meta.dirname, '../..')));
    const { code, output } = await runOnDevice(script, { wishes: 'slow=20000,report=1' });
    expect(code, output).toBe(0);
    expect(output).toMatch(/^alive\nstub: 0 bytes, 0 sessions, \d+ operations$/);
  });

  test('workers compute side by side, each with sessions of its own', async () => {
    const script = `
      const { Worker } = require('node:worker_threads');
      const body = 'const ca = require(' + JSON.stringify(PACKAGE) + ');' + \`
        const { parentPort } = require('node:worker_threads');
        const shape = { batch: 1, heads: 1, queryLength: 2, headDim: 1 };
        const array = () => ca.DeviceTensor.from(Float32Array.of(1, 2));
        const call = () => ca.attention({ query: array(), key: array(), value: array(), shape });
        Promise.all(Array.from({ length: 8 }, call)).then((results) => {
          parentPort.postMessage(new Set(results.map((each) => each.toArraySync().join())).size);
        });
      \`;
      const workers = [1, 2, 3].map(() => new Worker(body, { eval: true }));
      Promise.all(workers.map((worker) => new Promise((resolve, reject) =>
        worker.once('message', resolve).once('error', reject)))).then((sizes) => console.log(sizes.join()));
    `.replace('PACKAGE', JSON.stringify(path.resolve(import.meta.dirname, '../..')));
    const { output } = await runOnDevice(script, { wishes: 'slow=2,report=1' });
    expect(output).toBe('1,1,1\nstub: 0 bytes, 0 sessions, 24 operations');
  });
});
