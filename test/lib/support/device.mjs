// Devices without a GPU: the package opens a stand-in for the CUDA backend whose device memory is
// plain memory and whose operations are the CPU's kernels (test/cuda/stub/backend.cc).

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { entry, required, root } from './package.mjs';

/** Names the backend to open; read when a device is first used. */
export const BACKEND_VARIABLE = 'CLUSTER_ATTENTION_CUDA_BACKEND';

export const stub = path.join(root, 'build/native-tests/stub/cluster_attention_cuda.so');

/** Makes this process use the stand-in. To be called before the first use of a device. */
export function useStub() {
  if (!existsSync(stub)) throw new Error(`there is no ${stub}: npm run test:native builds it`);
  process.env[BACKEND_VARIABLE] = stub;
}

/** Options that stay in plain memory. */
export const PLAIN = ['lengths', 'queryLengths', 'keyLengths'];

/** Options whose storage a call chooses; the other arrays of floats are float32. */
const FOLLOWS = new Set(['query', 'key', 'value', 'inputs', 'scores', 'a', 'b', 'out']);

/** The options with DeviceTensors in the place of arrays. */
export function onDevice(options, { device = 'cuda', dtype = 'float32' } = {}) {
  const move = (name, value) => {
    if (!ArrayBuffer.isView(value) || PLAIN.includes(name)) return value;
    const own = FOLLOWS.has(name) ? { dtype } : {};
    return required.DeviceTensor.from(value, { device, ...own });
  };
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [name, move(name, value)]),
  );
}

export const isTensor = (value) => value instanceof required.DeviceTensor;

/** A result with arrays in the place of DeviceTensors. */
export function inPlainMemory(result) {
  if (isTensor(result)) return result.toArraySync();
  return Object.fromEntries(
    Object.entries(result).map(([name, value]) => [name, value.toArraySync()]),
  );
}

/** Disposes of the DeviceTensors among options or results. */
export function disposeAll(...objects) {
  for (const object of objects) {
    for (const value of isTensor(object) ? [object] : Object.values(object)) {
      if (isTensor(value)) value.dispose();
    }
  }
}

const prelude = `
  const ca = require(${JSON.stringify(entry)});
  const { DeviceTensor } = ca;
  const shape = { batch: 1, heads: 1, queryLength: 2, headDim: 1 };
  const plain = () => ({
    query: Float32Array.of(1, 2), key: Float32Array.of(1, 2), value: Float32Array.of(3, 4), shape,
  });
  const moved = (device = 'cuda') => {
    const { query, key, value } = plain();
    const [q, k, v] = [query, key, value].map((array) => DeviceTensor.from(array, { device }));
    return { query: q, key: k, value: v, shape };
  };
  const said = (error) => error.code + ': ' + error.message;
  const attempt = (body) => { try { return body(); } catch (error) { return said(error); } };
`;

/**
 * Runs a script in a fresh Node with the stand-in, or the backend that is named, and what it is
 * wished to do wrong. The script has `ca`, `plain()`, `moved()`, `said(error)`, `attempt(body)`.
 */
export function runOnDevice(script, { wishes = '', backend = stub, flags = [] } = {}) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...flags, '-e', prelude + script], {
      env: { ...process.env, [BACKEND_VARIABLE]: backend, CLUSTER_ATTENTION_STUB: wishes },
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
