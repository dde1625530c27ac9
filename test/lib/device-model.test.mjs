// The package over the real CUDA backend, compiled for a model of a GPU (test/cuda/model): its own
// sessions, staging and kernels, called as a user calls them. Kernels are tested for themselves in
// test/cuda; here are few and small cases, since the model is slow.

import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { expectClose, expectSameBits } from './support/compare.mjs';
import { normals, roundToBfloat16, words } from './support/data.mjs';
import { BACKEND_VARIABLE, disposeAll, inPlainMemory, onDevice } from './support/device.mjs';
import { operations, resultArrays } from './support/operations.mjs';
import { imported, required, root } from './support/package.mjs';
import { errorOf } from './support/refusal.mjs';

process.env[BACKEND_VARIABLE] = path.join(
  root,
  'build/native-tests/model/cluster_attention_cuda.so',
);

const { DeviceTensor } = required;

/** Floats near, all else equal. */
function expectAlike(actual, expected, bound = 2e-5) {
  const wanted = resultArrays(expected);
  for (const [name, array] of Object.entries(resultArrays(actual))) {
    if (array instanceof Float32Array) {
      expectClose(array, wanted[name], bound);
    } else if (array instanceof Float64Array) {
      expectClose(array, wanted[name], bound);
    } else {
      expectSameBits(array, wanted[name]);
    }
  }
}

test('info() describes the devices', () => {
  const { available, reason, runtime, targets, devices } = required.info().cuda;
  expect([available, reason, runtime]).toEqual([true, undefined, '13.0']);
  expect(targets.length).toBeGreaterThan(0);
  expect(devices[0]).toMatchObject({ index: 0, computeCapability: '9.0' });
  expect(devices[0].reason).toBeUndefined();
});

describe('arrays come back as they went', () => {
  test.each([
    ['float32', normals(1001, 1)],
    ['int32', Int32Array.from({ length: 1001 }, (_, i) => i * i - 50)],
    ['uint64', words(77, 2)],
  ])('%s', async (dtype, array) => {
    const tensor = DeviceTensor.from(array);
    expect(tensor.dtype).toBe(dtype);
    expectSameBits(tensor.toArraySync(), array);
    expectSameBits(await tensor.toArray(), array);
    tensor.dispose();
  });

  test('bfloat16, rounded to nearest', async () => {
    const array = normals(999, 3);
    const tensor = await DeviceTensor.fromAsync(array, { dtype: 'bfloat16', device: 'cuda:0' });
    expectSameBits(tensor.toArraySync(), roundToBfloat16(array));
    tensor.dispose();
  });
});

describe.each(['attention', 'hash', 'hammingKMeans', 'aggregate', 'sparseDot', 'matmul'])(
  '%s',
  (name) => {
    const { minimal } = operations[name];

    test('over DeviceTensors and over plain arrays is what the CPU gives', async () => {
      const expected = required[`${name}Sync`](minimal());
      const moved = onDevice(minimal());
      const result = await imported[name](moved);
      expectAlike(inPlainMemory(result), expected);
      disposeAll(moved, result);
      expectAlike(required[`${name}Sync`]({ ...minimal(), device: 'cuda' }), expected);
    });
  },
);

test('matmul adds to what out holds', async () => {
  const { minimal } = operations.matmul;
  const { length } = required.matmulSync(minimal());
  const out = () => Float32Array.from({ length }, (_, i) => i - 3);
  const options = () => ({ ...minimal(), out: out(), accumulate: true });
  const expected = required.matmulSync(options());
  const moved = onDevice(options());
  expectAlike(inPlainMemory(await imported.matmul(moved)), expected);
  disposeAll(moved);
  expectAlike(required.matmulSync({ ...options(), device: 'cuda' }), expected);
});

/** All that are differentiable but for CAST. */
const WITH_GRADIENTS = [
  'attention',
  'clusteredAttention',
  'improvedClusteredAttention',
  'centroidAttention',
  'castAttention',
  'centroidPool',
  'centroidEncode',
  'aggregate',
  'broadcast',
  'sparseDot',
  'sparseWeightedSum',
];

describe.each(WITH_GRADIENTS)('the gradients of %s', (name) => {
  // Eight steps of pooling pass the roundings of each on to the next: two are enough here.
  const steps = name === 'centroidPool' ? { iterations: 2 } : {};
  const minimal = () => ({ ...operations[name].minimal(), ...steps });

  test('over DeviceTensors and over plain arrays are what the CPU gives', async () => {
    const cpu = required[`${name}VjpSync`](minimal());
    const gradOutput = normals(cpu.output.length, 5);
    const expected = cpu.backward(gradOutput);
    const moved = onDevice(minimal());
    const state = await imported[`${name}Vjp`](moved);
    disposeAll(moved);
    const gradients = await state.backward(DeviceTensor.from(gradOutput));
    expectAlike(inPlainMemory(gradients), expected, 1e-4);
    state.dispose();
    disposeAll(gradients, state);
    const plain = required[`${name}VjpSync`]({ ...minimal(), device: 'cuda' });
    expectAlike(plain.backward(gradOutput), expected, 1e-4);
  });
});

test('a NaN is found with its place', async () => {
  const options = operations.attention.minimal();
  options.key[4] = NaN;
  const moved = onDevice(options);
  for (const each of [{ ...options, device: 'cuda' }, moved]) {
    const error = await errorOf(() => required.attentionSync(each));
    expect(error).toMatchObject({ code: 'ERR_NON_FINITE', argument: 'key', index: 4 });
  }
  disposeAll(moved);
});
