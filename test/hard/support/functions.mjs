// Every function that a caller can reach, with options that work: the forms of each operation, the
// gradients, and, one layer below, the functions of the native addon itself, which check again
// because they trust nobody. All of it follows from test/lib/support/operations.mjs.

import { createRequire } from 'node:module';
import { names, operations } from '../../lib/support/operations.mjs';
import { withProperties } from './attacks.mjs';

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
    ...Array.from(requests).flatMap(([native, request]) => nativeFunctions(native, request)),
  ];
}
