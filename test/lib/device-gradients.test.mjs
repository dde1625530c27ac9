// The Vjp forms on a device, over the stand-in for the CUDA backend: its operations are the CPU's
// kernels, so that gradients must have the CPU's bits.

import { describe, expect, test } from 'vitest';
import { expectClose, expectSameResult } from './support/compare.mjs';
import { normals, roundToBfloat16 } from './support/data.mjs';
import {
  disposeAll,
  inPlainMemory,
  isTensor,
  onDevice,
  runOnDevice,
  useStub,
} from './support/device.mjs';
import { differentiable } from './support/gradients.mjs';
import { inputArrays, operations } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';
import { errorOf } from './support/refusal.mjs';

useStub();

const { DeviceTensor } = required;
const STORED = new Set(['query', 'key', 'value', 'inputs']);

const formsOf = (name) => [
  ['sync', required[`${name}VjpSync`]],
  ['async', imported[`${name}Vjp`]],
];
const upstream = (output) => normals(output.length, 4100);

/** What the CPU makes of plain arrays. */
function onCpu(name, options) {
  const state = required[`${name}VjpSync`](options);
  const gradients = state.backward(upstream(state.output));
  return { gradients, output: state.output };
}

describe.each(differentiable)('%s', (name) => {
  const { minimal, typical } = operations[name];

  describe.each(formsOf(name))('%s', (_form, start) => {
    test.each([
      ['minimal', minimal, 'cuda:0'],
      ['typical', typical, 'cuda:0'],
      ['typical', typical, 'cuda:1'],
    ])('takes DeviceTensors, gives DeviceTensors: %s', async (_kind, make, device) => {
      const expected = onCpu(name, make());
      const moved = onDevice(make(), { device });
      const state = await start(moved);
      expectSameResult(state.output.toArraySync(), expected.output);
      // As a tensor or in plain memory, and again.
      const plain = upstream(expected.output);
      for (const gradOutput of [DeviceTensor.from(plain, { device }), plain, plain]) {
        const gradients = await state.backward(gradOutput);
        expectSameResult(inPlainMemory(gradients), expected.gradients);
        for (const tensor of Object.values(gradients)) expect(tensor.device).toBe(device);
        disposeAll(gradients);
      }
      state.dispose();
      disposeAll(moved, state);
    });

    test("computes plain arrays on the GPU with device: 'cuda'", async () => {
      const expected = onCpu(name, typical());
      const state = await start({ ...typical(), device: 'cuda' });
      expectSameResult(state.output, expected.output);
      expectSameResult(await state.backward(upstream(state.output)), expected.gradients);
      const tensor = DeviceTensor.from(upstream(state.output));
      const error = await errorOf(() => state.backward(tensor));
      expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE', argument: 'gradOutput' });
    });

    test('takes any of its arrays in plain memory beside DeviceTensors', async () => {
      const expected = onCpu(name, typical());
      const moved = onDevice(typical());
      for (const [option, tensor] of Object.entries(moved).filter(([, each]) => isTensor(each))) {
        const others = Object.values(moved).filter(isTensor);
        if (others.length === 1) continue;
        const state = await start({ ...moved, [option]: tensor.toArraySync() });
        const gradients = await state.backward(upstream(expected.output));
        expectSameResult(inPlainMemory(gradients), expected.gradients);
        disposeAll(gradients, state);
      }
      disposeAll(moved);
    });

    test('shares the memory of tensors that are disposed of meanwhile', async () => {
      const expected = onCpu(name, typical());
      const moved = onDevice(typical());
      const pending = start({ ...moved, details: true });
      disposeAll(moved);
      const state = await pending;
      disposeAll(state);
      const gradients = await state.backward(upstream(expected.output));
      expectSameResult(inPlainMemory(gradients), expected.gradients);
      state.dispose();
      const error = await errorOf(() => state.backward(upstream(expected.output)));
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED' });
    });

    test('gives only the gradients that are wanted', async () => {
      const { gradients: all, output } = onCpu(name, minimal());
      const state = await start(onDevice(minimal()));
      for (const wanted of Object.keys(all)) {
        const one = await state.backward(upstream(output), { gradients: [wanted] });
        expectSameResult(inPlainMemory(one), { [wanted]: all[wanted] });
      }
    });

    test('stores gradients as what they belong to', async () => {
      const options = typical();
      for (const [option, array] of inputArrays(options)) {
        if (STORED.has(option)) options[option] = roundToBfloat16(array);
      }
      const state = required[`${name}VjpSync`](options);
      const gradOutput = roundToBfloat16(upstream(state.output));
      const expected = state.backward(gradOutput);
      const moved = onDevice(options, { dtype: 'bfloat16' });
      const stored = await start(moved);
      const gradients = await stored.backward(
        DeviceTensor.from(gradOutput, { dtype: stored.output.dtype }),
      );
      for (const [option, tensor] of Object.entries(gradients)) {
        const dtype = STORED.has(option) ? moved[option].dtype : 'float32';
        expect([option, tensor.dtype]).toEqual([option, dtype]);
        // Not the CPU's bits: the saved output is rounded too.
        expectClose(tensor.toArraySync(), expected[option], 2e-2);
      }
    });

    test('finds the NaN in gradOutput that the CPU finds', async () => {
      const plain = required[`${name}VjpSync`](minimal());
      const poisoned = upstream(plain.output).fill(NaN);
      const { code, index } = await errorOf(() => plain.backward(poisoned));
      expect(code).toBe('ERR_NON_FINITE');
      const state = await start(onDevice(minimal()));
      for (const gradOutput of [poisoned, DeviceTensor.from(poisoned)]) {
        const error = await errorOf(() => state.backward(gradOutput));
        expect(error).toMatchObject({ code, argument: 'gradOutput', index });
      }
    });

    test('refuses a gradOutput of another device, type or size, or disposed of', async () => {
      const state = await start(onDevice(minimal()));
      const { length } = state.output;
      const from = (array, more) => DeviceTensor.from(array, more);
      const disposed = from(new Float32Array(length));
      disposed.dispose();
      const attempts = [
        ['ERR_OUT_OF_RANGE', from(new Float32Array(length), { device: 'cuda:1' })],
        ['ERR_INVALID_ARG_TYPE', from(new Float32Array(length), { dtype: 'bfloat16' })],
        ['ERR_INVALID_ARG_TYPE', from(new Int32Array(length))],
        ['ERR_SHAPE_MISMATCH', from(new Float32Array(length + 1))],
        ['ERR_UNSUPPORTED', disposed],
      ];
      for (const [code, gradOutput] of attempts) {
        const error = await errorOf(() => state.backward(gradOutput));
        expect(error).toMatchObject({ code, argument: 'gradOutput' });
      }
    });
  });
});

test('a gradOutput on a device is refused where the call computed on the CPU', async () => {
  const state = required.attentionVjpSync(operations.attention.minimal());
  const error = await errorOf(() => state.backward(DeviceTensor.from(state.output)));
  expect(error).toMatchObject({ code: 'ERR_INVALID_ARG_TYPE', argument: 'gradOutput' });
});

describe('out', () => {
  test('is the output, and is disposed of without harm to the state', async () => {
    const expected = onCpu('attention', operations.attention.minimal());
    for (const [, start] of formsOf('attention')) {
      const moved = onDevice(operations.attention.minimal());
      const out = DeviceTensor.from(new Float32Array(expected.output.length));
      const state = await start({ ...moved, out });
      expect(state.output).toBe(out);
      out.dispose();
      const gradients = await state.backward(upstream(expected.output));
      expectSameResult(inPlainMemory(gradients), expected.gradients);
    }
  });
});

describe('the shape of a gradient', () => {
  test('is that of its option', () => {
    const { shape, layout = 'BHLD', ...rest } = operations.attention.typical();
    const { output } = onCpu('attention', { shape, layout, ...rest });
    const state = required.attentionVjpSync(onDevice({ shape, layout, ...rest }));
    const { key } = state.backward(upstream(output));
    const { batch, heads, keyLength = shape.queryLength, headDim } = shape;
    const inner = layout === 'BHLD' ? [heads, keyLength] : [keyLength, heads];
    expect(key.shape).toEqual([batch, ...inner, headDim]);
  });
});

describe('device memory', () => {
  // 4 centroids over 2^18 inputs: key and value are 4 MiB each, on a device of 32.
  const prelude = `
    const rows = 1 << 18;
    const many = new Float32Array(4 * rows).fill(0.5);
    const few = new Float32Array(16).fill(0.25);
    const sizes = { batch: 1, heads: 1, queryLength: 4, keyLength: rows, headDim: 4 };
    const options = () => ({
      query: DeviceTensor.from(few), key: DeviceTensor.from(many), value: DeviceTensor.from(many),
      shape: sizes, details: true,
    });
    const dispose = (object) => {
      for (const each of Object.values(object)) if (each instanceof DeviceTensor) each.dispose();
    };
    const codeOf = async (body) => {
      try { await body(); return 'ok'; } catch ({ code }) { return code; }
    };
    const fits = (MiB) => codeOf(() => DeviceTensor.from(new Float32Array(MiB << 18)).dispose());
  `;
  const run = async (script) =>
    (await runOnDevice(`${prelude}(async () => { ${script} })();`, { wishes: 'capacity=32' }))
      .output;

  test.each(['centroidAttentionVjpSync', 'centroidAttentionVjp'])(
    'is held by the state until dispose, and by nothing after: %s',
    async (form) => {
      const output = await run(`
        const said = [await fits(31)];
        const moved = options();
        const state = await ca.${form}(moved);
        dispose(moved);
        dispose(state);
        said.push(await fits(20), await fits(28));
        dispose(await state.backward(few));
        said.push(await codeOf(() => state.backward(new Float32Array(16).fill(NaN))), await fits(20));
        state.dispose();
        said.push(await fits(31));
        console.log(said.join());
      `);
      expect(output).toBe('ok,ok,ERR_OUT_OF_MEMORY,ERR_NON_FINITE,ok,ok');
    },
  );

  test('of an input that the gradient does not read is not held', async () => {
    const output = await run(`
      const said = [];
      for (const form of [ca.aggregateVjpSync, ca.aggregateVjp]) {
        const moved = {
          inputs: DeviceTensor.from(many), labels: DeviceTensor.from(new Int32Array(rows)),
          shape: { batch: 1, length: rows, dim: 4 }, clusters: 1,
        };
        const state = await form(moved);
        dispose(moved);
        said.push(await fits(30));
        dispose(await state.backward(few.subarray(0, 4)));
        state.dispose();
        dispose(state);
      }
      console.log(said.join());
    `);
    expect(output).toBe('ok,ok');
  });

  test('is not kept by a call that fails, before, while or after it computes', async () => {
    const output = await run(`
      const said = [];
      for (const form of [ca.centroidAttentionVjpSync, ca.centroidAttentionVjp]) {
        for (const more of [{ weights: few }, { scale: 3e38 }]) {
          const moved = options();
          said.push(await codeOf(() => form({ ...moved, ...more })));
          dispose(moved);
          said.push(await fits(31));
        }
      }
      console.log(said.join());
    `);
    const once = 'ERR_SHAPE_MISMATCH,ok,ERR_NON_FINITE,ok';
    expect(output).toBe(`${once},${once}`);
  });
});
