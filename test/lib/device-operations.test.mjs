// Every operation on a device, over the stand-in for the CUDA backend: its operations are the CPU's
// kernels, so that results must have the CPU's bits.

import { describe, expect, test } from 'vitest';
import { expectClose, expectSameResult } from './support/compare.mjs';
import { normals, roundToBfloat16 } from './support/data.mjs';
import {
  inPlainMemory,
  isTensor,
  disposeAll,
  onDevice,
  PLAIN,
  useStub,
} from './support/device.mjs';
import { inputArrays, names, operations, resultArrays } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';
import { errorOf } from './support/refusal.mjs';

useStub();

const CPU_ONLY = ['lshPlanes'];
const onDevices = names.filter((name) => !CPU_ONLY.includes(name));
const STORED = new Set(['query', 'key', 'value', 'inputs', 'scores', 'a', 'b']);
const isFloats = (array) => array instanceof Float32Array;

const forms = (name) => [
  [`${name}Sync`, required[`${name}Sync`]],
  [name, imported[name]],
];

/** Calls both forms with tensors made of `options`, and hands each result in plain memory. */
async function eachForm(name, options, placement, check) {
  for (const [, call] of forms(name)) {
    const moved = onDevice(options, placement);
    const result = await call(moved);
    const values = isTensor(result) ? [result] : Object.values(result);
    expect(values.every(isTensor)).toBe(true);
    check(inPlainMemory(result), values);
    disposeAll(moved, result);
  }
}

describe.each(onDevices)('%s', (name) => {
  const { minimal, typical } = operations[name];
  const sync = required[`${name}Sync`];

  test.each([
    ['minimal', minimal],
    ['typical', typical],
  ])('takes DeviceTensors and returns them, details included: %s', async (_kind, make) => {
    const expected = sync(make());
    await eachForm(name, make(), {}, (result) => expectSameResult(result, expected));
    await eachForm(name, make(), { device: 'cuda:1' }, (result, tensors) => {
      expectSameResult(result, expected);
      for (const { device } of tensors) expect(device).toBe('cuda:1');
    });
  });

  test("computes plain arrays on the GPU with device: 'cuda'", async () => {
    const expected = sync(typical());
    for (const [, call] of forms(name)) {
      for (const device of ['cuda', 'cuda:1']) {
        expectSameResult(await call({ ...typical(), device }), expected);
      }
    }
  });

  test('takes any of its arrays in plain memory beside DeviceTensors', async () => {
    const options = typical();
    const expected = sync(typical());
    const arrays = inputArrays(options).filter(([option]) => !PLAIN.includes(option));
    for (const [option] of arrays.length > 1 ? arrays : []) {
      const moved = onDevice(options);
      moved[option].dispose();
      const result = sync({ ...moved, [option]: options[option] });
      expectSameResult(inPlainMemory(result), expected);
      disposeAll(moved, result);
    }
  });

  test('keeps lengths in plain memory', async () => {
    const options = typical();
    for (const lengths of PLAIN.filter((option) => options[option])) {
      const tensor = required.DeviceTensor.from(options[lengths]);
      const moved = onDevice(options);
      const error = await errorOf(() => sync({ ...moved, [lengths]: tensor }));
      expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE', argument: lengths });
      disposeAll(moved, tensor);
    }
  });

  test('stores bfloat16 and computes with it', async () => {
    const options = typical();
    const stored = inputArrays(options).filter(([option]) => STORED.has(option));
    for (const [option, array] of stored) options[option] = roundToBfloat16(array);
    const expected = resultArrays(sync(options));
    const halves = ['output', 'values'].filter(
      (result) => stored.length > 0 && isFloats(expected[result]),
    );
    for (const result of halves) expected[result] = roundToBfloat16(expected[result]);
    const tidy = ArrayBuffer.isView(sync(options)) ? expected.output : expected;
    await eachForm(name, typical(), { dtype: 'bfloat16' }, (result) =>
      expectSameResult(result, tidy),
    );
    const moved = onDevice(typical(), { dtype: 'bfloat16' });
    const result = sync(moved);
    const byName = isTensor(result) ? { output: result } : result;
    for (const half of halves) expect(byName[half].dtype).toBe('bfloat16');
    disposeAll(moved, result);
  });

  test('finds the NaN that the CPU finds, wherever it lies', async () => {
    for (const [option, array] of inputArrays(minimal()).filter(([, each]) => isFloats(each))) {
      const poisoned = () => {
        const options = minimal();
        options[option][array.length - 1] = NaN;
        return options;
      };
      const expected = await errorOf(() => sync(poisoned()));
      expect(expected.code).toBe('ERR_NON_FINITE');
      const { code, argument, index } = expected;
      const moved = onDevice(poisoned());
      for (const [, call] of forms(name)) {
        for (const options of [moved, { ...poisoned(), device: 'cuda' }]) {
          const error = await errorOf(() => call(options));
          expect(error).toMatchObject({ code, argument, index });
          expect(error.message).toMatch(/received/);
        }
      }
      disposeAll(moved);
    }
  });

  test('lets a NaN pass that is to be propagated', async () => {
    const options = { ...minimal(), nonFinite: 'propagate' };
    const floats = inputArrays(options).find(([, array]) => isFloats(array));
    if (floats) floats[1][0] = NaN;
    const expected = sync(options);
    expectSameResult(sync({ ...options, device: 'cuda' }), expected);
  });

  test('refuses a disposed tensor, one of another size, type or device, and another device', async () => {
    const [option, array] = inputArrays(minimal())[0];
    const larger = new array.constructor(array.length + 1);
    const other =
      array instanceof Float32Array ? new Int32Array(array.length) : new Float32Array(9);
    const attempts = [
      [
        'ERR_SHAPE_MISMATCH',
        (moved) => ({ ...moved, [option]: required.DeviceTensor.from(larger) }),
      ],
      [
        'ERR_INVALID_ARG_TYPE',
        (moved) => ({ ...moved, [option]: required.DeviceTensor.from(other) }),
      ],
      ['ERR_OUT_OF_RANGE', (moved) => ({ ...moved, device: 'cuda:1' })],
      ['ERR_OUT_OF_RANGE', (moved) => ({ ...moved, device: 'cpu' })],
      [
        'ERR_UNSUPPORTED',
        (moved) => {
          moved[option].dispose();
          return moved;
        },
      ],
    ];
    for (const [code, change] of attempts) {
      for (const [, call] of forms(name)) {
        const moved = onDevice(minimal());
        const error = await errorOf(() => call(change(moved)));
        expect(error?.code, error?.message).toBe(code);
        expect(error.message).toMatch(/received/);
        disposeAll(moved);
      }
    }
  });
});

describe('tensors of two devices', () => {
  test.each(['attention', 'sparseDot'])('are refused: %s', async (name) => {
    const moved = onDevice(operations[name].minimal());
    const { key } = onDevice(operations[name].minimal(), { device: 'cuda:1' });
    const error = await errorOf(() => required[`${name}Sync`]({ ...moved, key }));
    expect(error).toMatchObject({ code: 'ERR_OUT_OF_RANGE', argument: 'key' });
  });

  test('so are two dtypes among query, key and value', async () => {
    const moved = onDevice(operations.attention.minimal());
    const { value } = onDevice(operations.attention.minimal(), { dtype: 'bfloat16' });
    const error = await errorOf(() => required.attentionSync({ ...moved, value }));
    expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE', argument: 'value' });
  });
});

describe('out', () => {
  const { minimal } = operations.attention;
  const target = (dtype) =>
    required.DeviceTensor.from(new Float32Array(required.attentionSync(minimal()).length), {
      dtype,
    });

  test.each(['float32', 'bfloat16'])('is a DeviceTensor, which is returned: %s', async (dtype) => {
    for (const [, call] of forms('attention')) {
      const moved = onDevice(minimal(), { dtype });
      const out = target(dtype);
      const fresh = await call(moved);
      expect(await call({ ...moved, out })).toBe(out);
      expectSameResult(out.toArraySync(), fresh.toArraySync());
      disposeAll(moved, out, fresh);
    }
  });

  test('is refused in plain memory, of another type, or among the inputs', async () => {
    const moved = onDevice(minimal());
    const { query } = moved;
    const length = required.attentionSync(minimal()).length;
    const same = { ...moved, shape: { ...minimal().shape } };
    const attempts = [
      ['ERR_INVALID_ARG_TYPE', { out: new Float32Array(length) }],
      ['ERR_INVALID_ARG_TYPE', { out: target('bfloat16') }],
      ['ERR_SHAPE_MISMATCH', { out: required.DeviceTensor.from(new Float32Array(length + 1)) }],
      [query.length === length ? 'ERR_OUT_OF_RANGE' : 'ERR_SHAPE_MISMATCH', { out: query }],
    ];
    for (const [code, more] of attempts) {
      const error = await errorOf(() => required.attentionSync({ ...same, ...more }));
      expect(error, code).toMatchObject({ code, argument: 'out' });
    }
  });

  test('alone on a device takes the call there', async () => {
    for (const [, call] of forms('attention')) {
      const out = target('float32');
      expect(await call({ ...minimal(), out })).toBe(out);
      expectSameResult(out.toArraySync(), required.attentionSync(minimal()));
      out.dispose();
    }
  });

  test('in plain memory takes what a GPU made of plain arrays', async () => {
    const expected = required.attentionSync(minimal());
    for (const [, call] of forms('attention')) {
      const out = new Float32Array(expected.length);
      expect(await call({ ...minimal(), out, device: 'cuda' })).toBe(out);
      expectSameResult(out, expected);
    }
  });
});

describe('matmul that accumulates adds to what out holds', () => {
  const { minimal } = operations.matmul;
  const length = required.matmulSync(minimal()).length;
  const before = () => Float32Array.from({ length }, (_, i) => i - 3);
  const expected = required.matmulSync({ ...minimal(), out: before(), accumulate: true });

  test.each(['float32', 'bfloat16'])('on the device: %s', async (dtype) => {
    for (const [, call] of forms('matmul')) {
      const moved = onDevice({ ...minimal(), out: before() }, { dtype });
      expect(await call({ ...moved, accumulate: true })).toBe(moved.out);
      // The factors are rounded too.
      expectClose(moved.out.toArraySync(), expected, dtype === 'float32' ? 0 : 2 ** -7);
      disposeAll(moved);
    }
  });

  test('in plain memory', async () => {
    for (const [, call] of forms('matmul')) {
      const out = before();
      expect(await call({ ...minimal(), out, accumulate: true, device: 'cuda' })).toBe(out);
      expectSameResult(out, expected);
    }
  });
});

describe('what the backend has no kernel for', () => {
  test.each(CPU_ONLY)('%s says so', async (name) => {
    for (const [form, call] of forms(name)) {
      const error = await errorOf(() => call({ ...operations[name].minimal(), device: 'cuda' }));
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED', argument: 'device' });
      expect(error.message).toContain(form);
    }
  });
});

test('planes of very long rows are drawn for a device too', () => {
  const options = () => ({
    query: normals(14_000, 41),
    key: normals(14_000, 42),
    value: normals(7, 43),
    shape: { batch: 1, heads: 1, queryLength: 7, headDim: 2000, valueDim: 1 },
    clusters: 3,
    details: true,
  });
  const expected = required.clusteredAttentionSync(options());
  const result = required.clusteredAttentionSync(onDevice(options(), {}));
  expectSameResult(inPlainMemory(result), expected);
});

describe('a chain of operations', () => {
  test('stays on the device: hash, group, aggregate, broadcast', () => {
    const { DeviceTensor, hashSync, hammingKMeansSync, aggregateSync, broadcastSync } = required;
    const rows = 60;
    const inputs = operations.hash.minimal().inputs;
    const dim = operations.hash.minimal().shape.dim;
    const array = Float32Array.from(
      { length: rows * dim },
      (_, i) => inputs[i % inputs.length] + i,
    );
    const planes = required.lshPlanesSync({ bits: 32, dim });
    const run = (data) => {
      const hashes = hashSync({ inputs: data, planes, shape: { rows, dim, bits: 32 } });
      const shape = { batch: 1, length: rows, dim };
      const { labels } = hammingKMeansSync({
        hashes,
        shape: { batch: 1, length: rows },
        clusters: 5,
      });
      const means = aggregateSync({ inputs: data, labels, shape, clusters: 5 });
      return broadcastSync({ inputs: means, labels, shape, clusters: 5 });
    };
    expectSameResult(run(DeviceTensor.from(array)).toArraySync(), run(array));
  });
});
