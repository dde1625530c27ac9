// Every function that a caller can reach, with options that work: the forms of each operation, the
// gradients, and, one layer below, the functions of the native addon itself, which check again
// because they trust nobody. All of it follows from test/lib/support/operations.mjs.

import { createRequire } from 'node:module';
import { disposeAll, isTensor, onDevice, useStub } from '../../lib/support/device.mjs';
import { names, operations } from '../../lib/support/operations.mjs';
import { OWN_ERROR, withProperties } from './attacks.mjs';

const require = createRequire(import.meta.url);
export const library = require('../../..');
export const { binding } = require('../../../dist/binding.js');

/** Work in proportion to these is asked for and done: a huge one is no mistake, only slow. */
const SLOW = new Set(['iterations', 'steps']);

const arraysOf = (options) =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => ArrayBuffer.isView(value)));
const bytesOf = (options) =>
  Object.values(arraysOf(options)).reduce((sum, { byteLength }) => sum + byteLength, 0);

/** A call that works: `call(options)`; `arrays` are what a hostile getter may damage meanwhile. */
function made(options, call, arrays = arraysOf(options)) {
  return { options, call, arrays, bytes: bytesOf(options) };
}

function operationFunctions(name) {
  const { minimal, arguments: known } = operations[name];
  return ['', 'Sync', 'Vjp', 'VjpSync'].flatMap((suffix) => {
    const call = library[name + suffix];
    if (call === undefined) return [];
    const sync = suffix.endsWith('Sync');
    return [{ name: name + suffix, sync, known, make: () => made(minimal(), call) }];
  });
}

/** One object, as attacks want it, as the two arguments of backward(). */
function backwardArguments(options) {
  const rest = withProperties({}, options);
  delete rest.gradOutput;
  return [options.gradOutput, rest];
}

function backwardFunctions(name) {
  const forward = library[`${name}VjpSync`];
  if (forward === undefined) return [];
  const { minimal } = operations[name];
  const known = {
    gradOutput: { kind: 'array', type: Float32Array },
    gradients: { kind: 'choice', values: [[], ['query'], ['inputs', 'inputs']] },
  };
  const make = (sync) => async () => {
    const inputs = minimal();
    const state = sync ? forward(inputs) : await library[`${name}Vjp`](inputs);
    const gradOutput = new Float32Array(state.output.length).fill(0.5);
    const call = (options) => {
      if (typeof options !== 'object' || options === null) {
        return state.backward(gradOutput, options);
      }
      let parts;
      try {
        parts = backwardArguments(options);
      } catch (error) {
        return Promise.reject(error); // hostile before the call has begun
      }
      return state.backward(...parts);
    };
    return made({ gradOutput }, call, { gradOutput, ...arraysOf(inputs) });
  };
  return [
    { name: `${name}VjpSync().backward`, sync: true, known, make: make(true) },
    { name: `${name}Vjp().backward`, sync: false, known, make: make(false) },
  ];
}

// ---- devices, over the stand-in for the CUDA backend ---------------------------------------------

useStub();

/** A call whose tensors are given back when it is over. */
function madeWithTensors(options, call, arrays) {
  const tensors = Object.fromEntries(Object.entries(options).filter(([, each]) => isTensor(each)));
  const exchanged = [];
  const end = () => disposeAll({ ...tensors }, exchanged);
  return { ...made(options, call, arrays), tensors, exchanged, end };
}

/** The operations with DeviceTensors in the place of arrays. */
function deviceFunctions(name) {
  const { minimal, arguments: known } = operations[name];
  const call = (form) => async (options) => {
    const result = await form(options);
    disposeAll(isTensor(result) ? [result] : result);
  };
  const make = (form) => () => madeWithTensors(onDevice(minimal()), call(form));
  return ['', 'Sync'].map((suffix) => ({
    name: `${name}${suffix} on a device`,
    sync: false,
    known,
    make: make(library[name + suffix]),
  }));
}

/** What makes DeviceTensors, and what reads them. */
function tensorFunctions() {
  const { DeviceTensor } = library;
  const known = {
    array: { kind: 'array', type: Float32Array },
    shape: { kind: 'choice', values: [[3, 4], [12], [], [2 ** 53, 2 ** 53], ['12'], [-3, -4]] },
    device: { kind: 'choice', values: ['auto', 'cpu', 'cuda', 'cuda:1', 'cuda:7', 'cuda:-1'] },
    dtype: { kind: 'choice', values: ['float32', 'bfloat16', 'int32', 'uint64', 'float64'] },
  };
  const makers = ['from', 'fromAsync'].map((maker) => {
    const call = async (options) => {
      if (typeof options !== 'object' || options === null) {
        disposeAll([await DeviceTensor[maker](options, options)]);
        return;
      }
      const rest = withProperties({}, options);
      delete rest.array;
      disposeAll([await DeviceTensor[maker](options.array, rest)]);
    };
    const make = () => made({ array: new Float32Array(12), shape: [3, 4], dtype: 'float32' }, call);
    return { name: `DeviceTensor.${maker}`, sync: false, known, make };
  });
  const read = () => {
    const tensor = DeviceTensor.from(new Float32Array(12));
    const call = (options) => tensor.toArray(options);
    return { ...made({}, call), tensors: { tensor }, exchanged: [], end: () => tensor.dispose() };
  };
  const signal = { signal: { kind: 'choice', values: [AbortSignal.abort(OWN_ERROR), 7, {}] } };
  return [...makers, { name: 'DeviceTensor.toArray', sync: false, known: signal, make: read }];
}

/** Requests as lib/ sends them, one for each native operation. */
async function capturedRequests() {
  const requests = new Map();
  const originals = new Map();
  for (const [native, original] of Object.entries(binding)) {
    if (native.endsWith('Async') || binding[`${native}Async`] === undefined) continue;
    originals.set(native, original);
    binding[native] = (request) => {
      requests.set(native, request);
      return original(request);
    };
  }
  for (const name of names) {
    const { minimal } = operations[name];
    library[`${name}Sync`](minimal());
    const state = library[`${name}VjpSync`]?.(minimal());
    state?.backward(new Float32Array(state.output.length).fill(0.5));
  }
  for (const [native, original] of originals) binding[native] = original;
  return requests;
}

/** What the fields of a captured request are. */
function knownFields(request) {
  const known = {};
  for (const [field, value] of Object.entries(request)) {
    if (ArrayBuffer.isView(value)) known[field] = { kind: 'array', type: value.constructor };
    else if (typeof value === 'boolean') known[field] = { kind: 'boolean' };
    else known[field] = { kind: 'size', slow: SLOW.has(field) };
  }
  return known;
}

function nativeFunctions(native, request) {
  const known = knownFields(request);
  const make = (call) => () => {
    const copy = Object.entries(request).map(([field, value]) =>
      ArrayBuffer.isView(value) ? [field, value.slice()] : [field, value],
    );
    return made(Object.fromEntries(copy), call);
  };
  return [
    { name: `addon.${native}`, sync: true, native: true, known, make: make(binding[native]) },
    {
      name: `addon.${native}Async`,
      sync: false,
      native: true,
      known,
      make: make(binding[`${native}Async`]),
    },
  ];
}

/** What is exported beside the operations: called with whatever comes. */
function otherFunctions(known) {
  const covered = new Set(known.map(({ name }) => name));
  return Object.keys(library)
    .filter((name) => !covered.has(name) && typeof library[name] === 'function')
    .filter((name) => !/^class\b/.test(Function.prototype.toString.call(library[name])))
    .map((name) => ({
      name,
      sync: true,
      bare: true,
      known: { value: { kind: 'size', low: 1, high: 16 } },
      make: () => made({ value: 2 }, (options) => library[name](options?.value)),
    }));
}

export async function allFunctions() {
  const functions = [...names.flatMap(operationFunctions), ...names.flatMap(backwardFunctions)];
  const requests = await capturedRequests();
  return [
    ...functions,
    ...otherFunctions(functions),
    ...names.flatMap(deviceFunctions),
    ...tensorFunctions(),
    ...Array.from(requests).flatMap(([native, request]) => nativeFunctions(native, request)),
  ];
}
