// What is done to a call that works, and what must hold afterwards.

import * as fc from 'fast-check';
import { CODES } from '../../lib/support/codes.mjs';

/** What hostile code throws: it must come through untouched. */
export const OWN_ERROR = new Error('of the caller');

/** Sizes that break address arithmetic, and things that only look like sizes. */
export const BAD_SIZES = [
  [0, -0, -1, 1.5, NaN, Infinity, -Infinity, 2 ** 31 - 1, 2 ** 31 + 1],
  [2 ** 32 - 1, 2 ** 32 + 1, 2 ** 53, '8', 8n, { valueOf: () => 8 }],
].flat();

const ARRAY_CLASSES = [
  [Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array],
  [Float32Array, Float64Array, BigInt64Array, BigUint64Array],
].flat();
const filled = (Class, length, value) => {
  const big = Class === BigInt64Array || Class === BigUint64Array;
  return new Class(length).fill(big ? BigInt(Number.isFinite(value) ? value : 7) : value);
};

const transfer = ({ buffer }) => {
  try {
    structuredClone(buffer, { transfer: [buffer] });
  } catch {
    // Shared or gone already.
  }
};

/** The same numbers in an array that lies about itself, or lives in odd memory. */
const DISGUISES = {
  proxy: (array) => new Proxy(array, {}),
  revoked: (array) => {
    const { proxy, revoke } = Proxy.revocable(array, {});
    revoke();
    return proxy;
  },
  dataView: ({ buffer, byteOffset, byteLength }) => new DataView(buffer, byteOffset, byteLength),
  buffer: ({ buffer }) => buffer,
  subclass: (array) =>
    class extends array.constructor {
      get length() {
        return 1e9;
      }
    }.from(array),
  ownLength: (array) => Object.defineProperty(array.slice(), 'length', { value: 1e9 }),
  ownConstructor: (array) => {
    const copy = array.slice();
    Object.defineProperty(copy, 'constructor', {
      get() {
        throw OWN_ERROR;
      },
    });
    return copy;
  },
  throwingIndex: (array) => Object.create(array),
  tagged: (array) => {
    const bytes = new Uint8Array(array.length);
    return Object.defineProperty(bytes, Symbol.toStringTag, { value: array.constructor.name });
  },
  short: (array) => array.slice(1),
  long: (array) => new array.constructor(array.length + 1),
  odd: (array) => {
    const large = new array.constructor(array.length + 3);
    large.set(array, 1);
    return large.subarray(1, 1 + array.length);
  },
  shared: (array) => {
    const copy = new array.constructor(new SharedArrayBuffer(array.byteLength));
    copy.set(array);
    return copy;
  },
  growableShared: (array) => {
    const maxByteLength = 4 * array.byteLength + 64;
    const copy = new array.constructor(new SharedArrayBuffer(array.byteLength, { maxByteLength }));
    copy.set(array);
    return copy;
  },
  tracking: (array) => tracking(array),
  outOfBounds: (array) => {
    const copy = tracking(array);
    const fixed = new array.constructor(copy.buffer, 0, array.length);
    copy.buffer.resize(Math.floor(copy.buffer.byteLength / 16) * 8);
    return fixed;
  },
  detached: (array) => {
    const copy = array.slice();
    transfer(copy);
    return copy;
  },
  frozenView: (array) => Object.preventExtensions(array.slice()),
  noPrototype: (array) => Object.setPrototypeOf(array.slice(), null),
};

/** A view that follows the length of its resizable buffer. */
function tracking(array) {
  const maxByteLength = 4 * array.byteLength + 64;
  const copy = new array.constructor(new ArrayBuffer(array.byteLength, { maxByteLength }));
  copy.set(array);
  return copy;
}

/** In the place of a DeviceTensor: one that does not belong there, or something like one. */
const OTHER_TENSORS = {
  elsewhere: (tensor) => again(tensor, { device: 'cuda:1' }),
  bfloat16: (tensor) => again(tensor, tensor.dtype === 'float32' ? { dtype: 'bfloat16' } : {}),
  disposed: (tensor) => {
    const copy = again(tensor, {});
    copy.dispose();
    return copy;
  },
  proxy: (tensor) => new Proxy(tensor, {}),
  heir: (tensor) => Object.create(tensor),
  plain: (tensor) => tensor.toArraySync(),
  number: () => 1, // what the native code knows it by
};

function again(tensor, options) {
  return tensor.constructor.from(tensor.toArraySync(), options);
}

/** What a getter does to an array beside giving its value. */
const EFFECTS = {
  detach: (array) => transfer(array),
  shrink: ({ buffer }) => buffer.resizable && buffer.resize(Math.floor(buffer.byteLength / 16) * 8),
  empty: ({ buffer }) => buffer.resizable && buffer.resize(0),
  grow: ({ buffer }) => {
    if (buffer.resizable) buffer.resize(buffer.maxByteLength);
    else if (buffer.growable) buffer.grow(buffer.maxByteLength);
  },
  fill: (array) => array.length > 0 && array.fill(typeof array[0] === 'bigint' ? 3n : -7),
  fillHuge: (array) => array.length > 0 && array.fill(typeof array[0] === 'bigint' ? 3n : 1e30),
};

function damage(array, effect) {
  try {
    EFFECTS[effect](array);
  } catch {
    // It is gone already.
  }
}

/** The own properties, getters unread. */
export const withProperties = (object, options) => {
  for (const name of Reflect.ownKeys(options)) {
    if (name === 'length' && Array.isArray(object)) continue;
    const descriptor = Object.getOwnPropertyDescriptor(options, name);
    Object.defineProperty(object, name, Object.assign(Object.create(null), descriptor));
  }
  return object;
};

const WRAPS = {
  proxy: (options) => new Proxy(options, {}),
  throwingGet: (options) =>
    new Proxy(options, {
      get() {
        throw OWN_ERROR;
      },
    }),
  throwingKeys: (options) =>
    new Proxy(options, {
      ownKeys() {
        throw OWN_ERROR;
      },
    }),
  doubledKeys: (options) => {
    let turn = 0;
    return new Proxy(options, { get: (target, name) => (++turn % 2 ? target[name] : undefined) });
  },
  heir: (options) => Object.create(options),
  bare: (options) => withProperties(Object.create(null), options),
  frozen: (options) => Object.freeze(options),
  array: (options) => withProperties([], options),
  func: (options) => withProperties(() => {}, options),
  nothing: () => undefined,
  null: () => null,
  number: () => 7,
};

/** Assigning to a property that Object.prototype refuses fails; a getter there gives a value. */
const POLLUTIONS = {
  value: { value: 5, writable: true },
  readOnly: { value: 5, writable: false },
  accessor: {
    get: () => 3,
    set() {
      throw OWN_ERROR;
    },
  },
};
const POLLUTED = [
  ['abort', 'argument', 'code', 'details', 'index', 'inputs', 'key', 'keyLength', 'labels'],
  ['length', 'out', 'output', 'query', 'scale', 'seed', 'shape', 'signal', 'status', 'value'],
].flat();

const show = (value) => {
  if (ArrayBuffer.isView(value))
    return `${Object.prototype.toString.call(value)}(${value.byteLength} B)`;
  return fc.stringify(value);
};

const step = (kind, fields) => fc.record({ kind: fc.constant(kind), ...fields });

/** Arbitrary attacks on the options of one function, as short lists of steps. */
export function attacks({ known }, arrays, tensors = []) {
  const paths = Object.keys(known);
  const anyArray = fc
    .tuple(
      fc.constantFrom(...ARRAY_CLASSES),
      fc.integer({ min: 0, max: 90 }),
      fc.constantFrom(0, 1, -1, 2, 1e30, NaN, Infinity),
    )
    .map(([Class, length, value]) => filled(Class, length, value));
  const anything = fc.oneof(
    fc.constantFrom(...BAD_SIZES, null, Symbol('s'), 1n << 70_000n),
    anyArray,
    fc.anything({
      withBigInt: true,
      withTypedArray: true,
      withNullPrototype: true,
      withDate: true,
    }),
  );
  const values = (path) => {
    const { kind, slow, values: names = [] } = known[path];
    const small = fc.integer({ min: -1, max: 70 });
    if (kind === 'size') return slow ? small : fc.oneof(small, fc.constantFrom(...BAD_SIZES));
    if (kind === 'array') return fc.oneof(anyArray, anything);
    if (kind === 'choice') return fc.oneof(fc.constantFrom(undefined, ...names), anything);
    if (kind === 'boolean') return fc.oneof(fc.boolean(), anything);
    return fc.oneof(fc.double(), anything);
  };
  const path = fc.constantFrom(...paths);
  // Anything but a number that asks for years of work.
  const quick = fc.constantFrom(...paths.filter((each) => !known[each].slow));
  const steps = [
    path.chain((at) => step('set', { path: fc.constant(at), value: values(at) })),
    step('set', { path: quick, value: anything }),
    step('get', {
      path,
      effect: fc.constantFrom(...Object.keys(EFFECTS), 'throw'),
      victim: fc.constantFrom(...arrays, ''),
    }),
    step('change', { path: quick, value: anything }),
    step('wrap', { how: fc.constantFrom(...Object.keys(WRAPS)) }),
    step('pollute', {
      name: fc.constantFrom(...POLLUTED),
      how: fc.constantFrom(...Object.keys(POLLUTIONS)),
    }),
  ];
  if (arrays.length > 0) {
    steps.push(
      step('disguise', {
        array: fc.constantFrom(...arrays),
        how: fc.constantFrom(...Object.keys(DISGUISES)),
      }),
      step('overlap', {
        array: fc.constantFrom(...arrays),
        shift: fc.integer({ min: -8, max: 8 }),
      }),
      step('unknown', { name: fc.constantFrom('sede', '__proto__', 'constructor', 'toString') }),
    );
  }
  if (tensors.length > 0) {
    const victim = fc.constantFrom(...tensors);
    steps.push(
      step('dispose', { path, victim }),
      step('exchange', { victim, how: fc.constantFrom(...Object.keys(OTHER_TENSORS)) }),
    );
  }
  return fc
    .array(fc.oneof(...steps), { minLength: 1, maxLength: 4 })
    .map((list) =>
      Object.assign(list, { [fc.toStringMethod]: () => list.map(describeStep).join('; ') }),
    );
}

const describeStep = ({ kind, ...rest }) =>
  `${kind} ${Object.entries(rest)
    .map(([name, value]) => `${name}=${show(value)}`)
    .join(' ')}`;

function place(options, path, descriptor) {
  const [first, second] = path.split('.');
  let object = options;
  if (second !== undefined) {
    const shape = valueAt(options, first);
    if (typeof shape !== 'object' || shape === null) return;
    object = withProperties({}, shape);
    place(options, first, { value: object, writable: true });
  }
  Object.defineProperty(object, second ?? first, {
    __proto__: null,
    enumerable: true,
    configurable: true,
    ...descriptor,
  });
}

const at = (object, name) =>
  typeof object === 'object' && object !== null
    ? Object.getOwnPropertyDescriptor(object, name)?.value
    : undefined;

/** What stands there now; a getter of an earlier step is not run. */
function valueAt(options, path) {
  const [first, second] = path.split('.');
  return second === undefined ? at(options, first) : at(at(options, first), second);
}

const holds = (options, name, array) => array !== undefined && valueAt(options, name) === array;

const STEPS = {
  set: ({ options }, { path, value }) => place(options, path, { value, writable: true }),
  get({ options, arrays }, { path, effect, victim }) {
    if (effect !== 'throw' && holds(options, victim, arrays[victim])) {
      // Memory that can be resized, so that more than detaching is possible.
      if (effect !== 'detach') {
        arrays[victim] = tracking(arrays[victim]);
        place(options, victim, { value: arrays[victim], writable: true });
      }
    }
    const value = valueAt(options, path);
    const get = () => {
      if (effect === 'throw') throw OWN_ERROR;
      if (arrays[victim] !== undefined) damage(arrays[victim], effect);
      return value;
    };
    place(options, path, { get });
  },
  change({ options }, { path, value }) {
    const answers = [valueAt(options, path), value];
    let reads = 0;
    place(options, path, { get: () => answers[reads++ % 2] });
  },
  disguise({ options, arrays }, { array, how }) {
    if (!holds(options, array, arrays[array])) return;
    place(options, array, { value: DISGUISES[how](arrays[array]), writable: true });
  },
  overlap({ options, arrays, known }, { array, shift }) {
    if (known.out === undefined || arrays[array] === undefined) return;
    const { buffer, byteOffset = 0, length = 0 } = arrays[array];
    const begin = Math.max(0, byteOffset + 4 * shift);
    const room = Math.floor((buffer.byteLength - begin) / 4);
    if (room <= 0) return;
    const value = new Float32Array(buffer, begin, Math.min(length, room));
    place(options, 'out', { value, writable: true });
  },
  dispose({ options, tensors }, { path, victim }) {
    const value = valueAt(options, path);
    const get = () => {
      tensors[victim].dispose();
      return value;
    };
    place(options, path, { get });
  },
  exchange({ options, tensors, exchanged }, { victim, how }) {
    if (!holds(options, victim, tensors[victim])) return;
    const value = OTHER_TENSORS[how](tensors[victim]);
    // What only looks like one has nothing to free.
    if (!['proxy', 'heir'].includes(how)) exchanged.push(value);
    place(options, victim, { value, writable: true });
  },
  unknown: ({ options }, { name }) => place(options, name, { value: 1, writable: true }),
};

/** Applies an attack to a call that works; `during` surrounds the call itself. */
export function applyAttack(call, list, known) {
  const { tensors = {}, exchanged = [] } = call;
  const state = { options: call.options, arrays: { ...call.arrays }, tensors, exchanged, known };
  const polluted = new Map();
  for (const each of list) {
    if (each.kind === 'pollute') polluted.set(each.name, POLLUTIONS[each.how]);
    else STEPS[each.kind]?.(state, each);
  }
  let { options } = state;
  const wrap = list.find(({ kind }) => kind === 'wrap');
  if (wrap !== undefined) options = WRAPS[wrap.how](options);
  const during = (body) => {
    for (const [name, descriptor] of polluted) {
      const attributes = { __proto__: null, ...descriptor, configurable: true };
      // oxlint-disable-next-line no-extend-native
      Object.defineProperty(Object.prototype, name, attributes);
    }
    try {
      return body();
    } finally {
      for (const name of polluted.keys()) delete Object.prototype[name];
    }
  };
  return { options, during };
}

const CLASSES = {
  ERR_INVALID_ARG_TYPE: TypeError,
  ERR_OUT_OF_RANGE: RangeError,
  ERR_SHAPE_MISMATCH: RangeError,
  ERR_NON_FINITE: RangeError,
};

/** What is wrong with an error that a call has raised; undefined when it is a promised one. */
export function errorFault(error) {
  if (error === OWN_ERROR) return undefined;
  if (!(error instanceof Error)) return `threw ${fc.stringify(error)}`;
  if (!CODES.includes(error.code)) return `an error without a documented code: ${error.stack}`;
  const Class = CLASSES[error.code] ?? Error;
  if (Object.getPrototypeOf(error) !== Class.prototype) {
    return `${error.code} must be a ${Class.name}: ${error.stack}`;
  }
  return undefined;
}
