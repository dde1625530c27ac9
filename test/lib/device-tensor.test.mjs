// The promises of DeviceTensor, over the stand-in for the CUDA backend.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { expectSameBits } from './support/compare.mjs';
import { normals, oddView, roundToBfloat16, words } from './support/data.mjs';
import { onDevice, runOnDevice, useStub } from './support/device.mjs';
import { operations } from './support/operations.mjs';
import { entry, required, root } from './support/package.mjs';
import { errorOf, expectRefused } from './support/refusal.mjs';

useStub();

const { DeviceTensor } = required;
const makers = [
  ['from', (...parameters) => DeviceTensor.from(...parameters)],
  ['fromAsync', (...parameters) => DeviceTensor.fromAsync(...parameters)],
];
const arrays = [
  ['float32', normals(60, 1)],
  ['int32', Int32Array.from({ length: 60 }, (_, i) => i - 7)],
  ['uint64', words(60, 2)],
];
const report = (operationCount) => `stub: 0 bytes, 0 sessions, ${operationCount} operations`;

describe.each(makers)('DeviceTensor.%s', (_name, make) => {
  test.each(arrays)('holds what it was given: %s', async (dtype, array) => {
    const tensor = await make(array, { shape: [3, 4, 5], device: 'cuda:1' });
    expect([tensor.dtype, tensor.device, tensor.length]).toEqual([dtype, 'cuda:1', 60]);
    expect(tensor.shape).toEqual([3, 4, 5]);
    expectSameBits(tensor.toArraySync(), array);
    expectSameBits(await tensor.toArray(), array);
    tensor.dispose();
  });

  test('has defaults: one dimension on the first device', async () => {
    const nothing = { shape: null, device: null, dtype: undefined };
    for (const options of [undefined, null, {}, nothing, { device: 'cuda' }, { device: 'auto' }]) {
      const tensor = await make(Float32Array.of(1, 2, 3), options);
      expect([tensor.shape, tensor.device, tensor.dtype]).toEqual([[3], 'cuda:0', 'float32']);
      tensor.dispose();
    }
  });

  test('rounds to bfloat16', async () => {
    const array = normals(33, 3);
    const tensor = await make(array, { dtype: 'bfloat16' });
    expectSameBits(tensor.toArraySync(), roundToBfloat16(array));
    expectSameBits(await tensor.toArray(), roundToBfloat16(array));
  });

  test('takes views, shared memory and nothing at all', async () => {
    const array = normals(20, 4);
    expectSameBits((await make(oddView(array))).toArraySync(), array);
    const shared = new Float32Array(new SharedArrayBuffer(80));
    shared.set(array);
    expectSameBits((await make(shared)).toArraySync(), array);
    const empty = await make(new Int32Array(0), { shape: [0, 7] });
    expect([empty.shape, empty.toArraySync().length]).toEqual([[0, 7], 0]);
  });

  test.each([
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'array', [[1, 2]]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'array', [new Float64Array(2)]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'options', [new Float32Array(2), 7]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'shape', [new Float32Array(2), { shape: 2 }]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'shape', [new Float32Array(2), { shape: ['2'] }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'shape', [new Float32Array(2), { shape: [-2, -1] }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'array', [new Float32Array(2), { shape: [2 ** 40, 2 ** 40] }]],
    [RangeError, 'ERR_SHAPE_MISMATCH', 'array', [new Float32Array(2), { shape: [3] }]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'device', [new Float32Array(2), { device: 0 }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'device', [new Float32Array(2), { device: 'cpu' }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'device', [new Float32Array(2), { device: 'cuda:x' }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'dtype', [new Float32Array(2), { dtype: 'int32' }]],
    [RangeError, 'ERR_OUT_OF_RANGE', 'dtype', [new Int32Array(2), { dtype: 'bfloat16' }]],
    [TypeError, 'ERR_INVALID_ARG_TYPE', 'dtype', [new Int32Array(2), { dtype: 4 }]],
    [Error, 'ERR_CUDA_UNAVAILABLE', 'device', [new Float32Array(2), { device: 'cuda:2' }]],
    [Error, 'ERR_CUDA_UNAVAILABLE', 'device', [new Float32Array(2), { device: 'cuda:77' }]],
  ])('refuses with %o %s: %s', async (type, code, argument, parameters) => {
    const error = await errorOf(() => make(...parameters));
    expectRefused(error, { type, codes: [code] }, argument);
  });

  test('refuses options that it does not have', async () => {
    for (const options of [{ dtyp: 'float32' }, { signal: AbortSignal.abort() }, { seed: 1 }]) {
      const error = await errorOf(() => make(new Float32Array(2), options));
      const [argument] = Object.keys(options);
      expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE', argument });
    }
  });

  test('names the devices that can have one', async () => {
    for (const device of ['cuda:x', 'cpu']) {
      const error = await errorOf(() => make(new Float32Array(2), { device }));
      expect(error.message).toBe(`device must be 'auto', 'cuda' or 'cuda:N', received "${device}"`);
    }
  });

  test('is not upset by a getter that detaches the array', async () => {
    const array = new Float32Array(4);
    const options = {
      get shape() {
        structuredClone(array.buffer, { transfer: [array.buffer] });
        return [4];
      },
    };
    expect((await errorOf(() => make(array, options))).code).toBe('ERR_SHAPE_MISMATCH');
  });
});

describe('the life of a tensor', () => {
  test('fromAsync uses the bytes of the call', async () => {
    const array = normals(50, 5);
    const expected = array.slice();
    const pending = DeviceTensor.fromAsync(array);
    array.fill(7);
    expectSameBits((await pending).toArraySync(), expected);
  });

  test('nobody else can make one', () => {
    expect(() => new DeviceTensor()).toThrow(/DeviceTensor\.from/);
    const { minimal } = operations.attention;
    const pretender = Object.create(DeviceTensor.prototype);
    expect(() => required.attentionSync({ ...minimal(), query: pretender })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARG_TYPE' }),
    );
    // A number is device memory to the native code alone.
    expect(() => required.attentionSync({ ...minimal(), query: 1 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARG_TYPE' }),
    );
  });

  test('its methods refuse what is none', async () => {
    const pretender = Object.create(DeviceTensor.prototype);
    const uses = [
      ...['shape', 'length', 'dtype', 'device', 'disposed'].map((name) => () => pretender[name]),
      ...['toArray', 'toArraySync', 'dispose', Symbol.dispose].map(
        (name) => () => pretender[name](),
      ),
    ];
    for (const use of uses) {
      expectRefused(await errorOf(use), { type: TypeError, codes: ['ERR_INVALID_ARG_TYPE'] });
    }
  });

  test('is called by its name in errors', () => {
    const tensor = DeviceTensor.from(new Float32Array(2));
    const call = { ...operations.attention.minimal(), causal: tensor };
    expect(() => required.attentionSync(call)).toThrow(/received a DeviceTensor$/);
    tensor.dispose();
    expect(() => required.attentionSync(call)).toThrow(/received a DeviceTensor$/);
  });

  test('cannot be copied to another thread', () => {
    const tensor = DeviceTensor.from(new Float32Array(2));
    expect(structuredClone(tensor)).not.toBeInstanceOf(DeviceTensor);
  });

  test('after dispose it can be described, not used; twice is once', async () => {
    const tensor = DeviceTensor.from(new Float32Array(6), { shape: [2, 3] });
    expect(tensor.disposed).toBe(false);
    tensor.dispose();
    tensor.dispose();
    tensor[Symbol.dispose]();
    expect([tensor.disposed, tensor.shape, tensor.dtype]).toEqual([true, [2, 3], 'float32']);
    for (const use of [() => tensor.toArraySync(), () => tensor.toArray()]) {
      const error = await errorOf(use);
      expect(error.code).toBe('ERR_UNSUPPORTED');
      expect(error.message).toMatch(/received/);
    }
  });

  test('may be disposed of while asynchronous calls use it', async () => {
    const { typical } = operations.attention;
    const { output } = required.attentionSync(typical());
    const moved = onDevice(typical());
    const copy = moved.query.toArray();
    const pending = required.attention(moved);
    for (const name of ['query', 'key', 'value']) moved[name].dispose();
    expectSameBits(await copy, typical().query);
    expectSameBits((await pending).output.toArraySync(), output);
  });

  test('a signal aborts toArray', async () => {
    const tensor = DeviceTensor.from(new Float32Array(2));
    await expect(tensor.toArray({ signal: AbortSignal.abort('enough') })).rejects.toBe('enough');
    const error = await errorOf(() => tensor.toArray({ signal: 'now' }));
    expect(error.code).toBe('ERR_INVALID_ARG_TYPE');
  });

  test('forgotten ones are freed by the garbage collector, which knows their size', async () => {
    const script = `
      const array = new Float32Array(1 << 20);
      const seen = [];
      (async () => {
        for (let i = 0; i < 100; ++i) {
          seen.push(new WeakRef(DeviceTensor.from(array)));
          await new Promise((resolve) => setImmediate(resolve));
        }
        const alive = seen.filter((each) => each.deref()).length;
        console.log(alive < 60 ? 'freed' : alive + ' of 100 are alive');
      })();
    `;
    const { output } = await runOnDevice(script, { wishes: 'report=1' });
    expect(output).toBe(`freed\n${report(0)}`);
  });

  test("the README's example runs", async () => {
    const readme = readFileSync(path.join(root, 'README.md'), 'utf8');
    const [example] = /const assert[^`]*fromAsync[^`]*/.exec(readme);
    const script = example.replace("require('cluster-attention')", `require('${entry}')`);
    const { code, output } = await runOnDevice(`{ ${script} }`, { wishes: 'report=1' });
    expect([code, output]).toEqual([0, report(2)]);
  });

  test('what is alive at the end of the process is freed', async () => {
    const script = `globalThis.kept = [moved(), ca.attentionSync(moved())]; console.log('end');`;
    const { code, output } = await runOnDevice(script, { wishes: 'report=1' });
    expect([code, output]).toEqual([0, `end\n${report(1)}`]);
  });
});
