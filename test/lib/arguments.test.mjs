// Every argument of every operation: wrong kind, wrong size, out of range. The calls are derived
// from the one description of the operations in support/operations.mjs.

import { describe, expect, test } from 'vitest';
import { operations, names, optionAt, withOption } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';
import { omit } from './support/data.mjs';
import {
  errorOf,
  expectBothRefuse,
  expectRefused,
  WRONG_KIND,
  WRONG_LENGTH,
  WRONG_SIZE,
  WRONG_VALUE,
} from './support/refusal.mjs';

const OTHER_ARRAYS = [Uint8Array, Int32Array, Float32Array, Float64Array, BigUint64Array];

function wrongArrays({ type, low, high, choices }, valid) {
  const { length } = valid;
  const zeros = (Class, count = length) => new Class(count);
  const kinds = OTHER_ARRAYS.filter((Class) => Class !== type).map((Class) => zeros(Class));
  const others = [
    Array.from(valid),
    new DataView(new ArrayBuffer(4 * length)),
    valid.buffer,
    {},
    7,
  ];
  const withElement = (value) => {
    const array = type.from(valid);
    array[length - 1] = value;
    return array;
  };
  return [
    ...[...kinds, ...others, choices ? true : 'text'].map((value) => [WRONG_KIND, value]),
    ...[length + 1, length - 1, 0].map((count) => [WRONG_LENGTH, zeros(type, count)]),
    ...(choices ? [[WRONG_VALUE, 'text']] : []),
    ...(low === undefined ? [] : [[WRONG_VALUE, withElement(low - 1)]]),
    ...(high === undefined ? [] : [[WRONG_VALUE, withElement(high + 1)]]),
  ];
}

const NOT_NUMBERS = () => ['8', 8n, true, [8], { valueOf: () => 8 }, () => 8, Symbol('8')];

function wrongSizes({ low, high, fits }, valid) {
  const never = [-1, 1.5, NaN, Infinity, -Infinity, 2 ** 53, low - 1, -(2 ** 31)];
  const tooLarge = [2 ** 31 - 1, 2 ** 31 + 1, 2 ** 32 - 1, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER];
  return [
    ...NOT_NUMBERS().map((value) => [WRONG_KIND, value]),
    ...never.map((value) => [WRONG_VALUE, value]),
    ...(high === undefined ? [] : [[WRONG_VALUE, high + 1]]),
    ...(fits ? [valid + 1, valid + 7, ...tooLarge].map((value) => [WRONG_SIZE, value]) : []),
  ];
}

function wrongNumbers({ low }) {
  return [
    ...NOT_NUMBERS().map((value) => [WRONG_KIND, value]),
    ...[NaN, Infinity, -Infinity, 1e39].map((value) => [WRONG_VALUE, value]),
    ...(low === undefined ? [] : [[WRONG_VALUE, low - 0.5]]),
  ];
}

const wrongBooleans = () => [0, 1, 'true', {}, [], 1n].map((value) => [WRONG_KIND, value]);

const wrongChoices = ({ values }) => [
  ...[values[0].toUpperCase() + values[0], '', 'constructor', '__proto__'].map((value) => [
    WRONG_VALUE,
    value,
  ]),
  ...[0, true, {}, [values[0]], Symbol('choice')].map((value) => [WRONG_KIND, value]),
];

/** Wrong values of one argument, each with the promised refusal. */
function wrongValues(argument, valid) {
  switch (argument.kind) {
    case 'array':
      return wrongArrays(argument, valid);
    case 'size':
      return wrongSizes(argument, valid);
    case 'number':
      return wrongNumbers(argument);
    case 'choice':
      return wrongChoices(argument);
    default:
      return wrongBooleans();
  }
}

const show = (value) => {
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${value.byteLength} bytes)`;
  return typeof value === 'object' ? Object.prototype.toString.call(value) : String(value);
};

describe.each(names)('%s', (name) => {
  const { minimal, arguments: known } = operations[name];

  test('its minimal options work, in both forms', async () => {
    expect(required[`${name}Sync`](minimal())).toEqual(await imported[name](minimal()));
  });

  test.each(Object.entries(known))('refuses a wrong %s', async (path, argument) => {
    // A refused call leaves `out` as it was: see expectBothRefuse().
    const out = () => known.out && { out: known.out.valid().fill(5) };
    const options = () => ({ ...minimal(), ...argument.with, ...out() });
    const valid = optionAt(minimal(), path) ?? argument.valid?.();
    for (const [refusal, value] of wrongValues(argument, valid)) {
      try {
        await expectBothRefuse(name, () => withOption(options(), path, value), refusal, path);
      } catch (error) {
        error.message = `${path} = ${show(value)}: ${error.message}`;
        throw error;
      }
    }
  });

  test.each(Object.entries(known))('takes a valid %s', async (path, argument) => {
    const values = argument.valid ? [argument.valid()] : (argument.values ?? []);
    if (argument.kind === 'boolean') values.push(true, false);
    for (const value of values) {
      const options = { ...minimal(), ...argument.with };
      await expect(imported[name](withOption(options, path, value))).resolves.toBeDefined();
    }
    // Absent, undefined and null are the same for what need not be given.
    if (optionAt(minimal(), path) !== undefined) return;
    for (const value of [undefined, null]) {
      expect(required[`${name}Sync`](withOption(minimal(), path, value))).toEqual(
        required[`${name}Sync`](minimal()),
      );
    }
  });

  test('refuses the lack of any of its minimal options', async () => {
    for (const option of Object.keys(minimal())) {
      if (option === 'shape') continue;
      await expectBothRefuse(name, () => omit(minimal(), option), WRONG_KIND, option);
      await expectBothRefuse(name, () => ({ ...minimal(), [option]: null }), WRONG_KIND, option);
    }
  });

  test('refuses options and shapes that are no objects', async () => {
    for (const value of [undefined, null, 5, 'options', true, 3n, () => {}]) {
      await expectBothRefuse(name, () => value, WRONG_KIND);
      if (minimal().shape === undefined) continue;
      await expectBothRefuse(name, () => ({ ...minimal(), shape: value }), WRONG_KIND, 'shape');
    }
  });

  test('refuses a misspelt option by name', async () => {
    const refusal = { type: TypeError, codes: ['ERR_INVALID_ARG_TYPE'] };
    for (const form of [required[`${name}Sync`], imported[name]]) {
      const error = await errorOf(() => form({ ...minimal(), sede: 3 }));
      expect(error).toBeInstanceOf(refusal.type);
      expect(refusal.codes).toContain(error.code);
      expect(error.message).toContain('sede');
    }
  });

  const { out } = known;
  if (out) {
    test('refuses an out that overlaps an input', async () => {
      const inputs = Object.entries(minimal()).filter(([, value]) => ArrayBuffer.isView(value));
      for (const [input, array] of inputs) {
        const make = () => {
          // The input from byte 8 on, `out` begins at its last element.
          const bytes = new ArrayBuffer(8 + array.byteLength + 4 * out.valid().length);
          const view = new array.constructor(bytes, 8, array.length);
          view.set(array);
          const start = 8 + array.byteLength - 4;
          return {
            ...minimal(),
            [input]: view,
            out: new Float32Array(bytes, start, out.valid().length),
          };
        };
        await expectBothRefuse(name, make, WRONG_VALUE, 'out');
        const { message } = await errorOf(() => required[`${name}Sync`](make()));
        expect(message).toBe(
          `out must be memory that overlaps no input, received some of ${input}`,
        );
      }
    });
  }

  if (out) {
    test('takes an out beside its inputs in one buffer', async () => {
      const options = minimal();
      const expected = required[`${name}Sync`](options);
      const [input, array] = Object.entries(options).find(([, value]) => ArrayBuffer.isView(value));
      const bytes = new ArrayBuffer(array.byteLength + 4 * expected.length);
      const view = new array.constructor(bytes, 0, array.length);
      view.set(array);
      const target = new Float32Array(bytes, array.byteLength, expected.length);
      expect(required[`${name}Sync`]({ ...options, [input]: view, out: target })).toBe(target);
      expect(target).toEqual(expected);
    });
  }
});

describe('device', () => {
  const { cuda } = required.info();

  test('cpu and auto work, malformed names do not', async () => {
    const { minimal } = operations.attention;
    for (const device of ['cuda:', 'cuda:x', 'cuda:-1', 'gpu', 'cpu:0']) {
      await expectBothRefuse('attention', () => ({ ...minimal(), device }), WRONG_VALUE, 'device');
    }
  });

  test('cuda without a CUDA device fails with its own code and says why', async () => {
    if (cuda?.available) return;
    const { minimal } = operations.attention;
    const refusal = { type: Error, codes: ['ERR_CUDA_UNAVAILABLE'] };
    const out = operations.attention.arguments.out.valid;
    for (const device of ['cuda', 'cuda:0', 'cuda:7']) {
      const options = () => ({ ...minimal(), device, out: out().fill(5) });
      await expectBothRefuse('attention', options, refusal, 'device');
      for (const form of [required.attentionVjpSync, imported.attentionVjp]) {
        const { out: given, ...rest } = options();
        expectRefused(await errorOf(() => form({ ...rest, out: given })), refusal, 'device');
        expect(given).toEqual(out().fill(5));
      }
      const sum = () => ({
        ...operations.matmul.minimal(),
        device,
        out: operations.matmul.arguments.out.valid().fill(5),
        accumulate: true,
      });
      await expectBothRefuse('matmul', sum, refusal, 'device');
    }
  });
});

describe('sizes whose product overflows', () => {
  const none = () => ({
    query: new Float32Array(0),
    key: new Float32Array(0),
    value: new Float32Array(0),
  });

  // 2^64 elements are 0 elements to a careless 64-bit product, 2^32 to a 32-bit one.
  test.each([
    [2 ** 16, 2 ** 16, 2 ** 16, 2 ** 16],
    [2 ** 21, 2 ** 21, 2 ** 21, 2 ** 21],
    [1, 1, 2 ** 16, 2 ** 16],
    [1, 2 ** 30, 2 ** 30, 4],
    [1, 2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1],
  ])('attention of (%d, %d, %d, %d)', async (batch, heads, queryLength, headDim) => {
    const shape = { batch, heads, queryLength, headDim };
    await expectBothRefuse('attention', () => ({ ...none(), shape }), WRONG_SIZE);
  });

  test('an empty batch of huge sequences is still empty, or refused', async () => {
    const huge = 2 ** 31 - 1;
    const shape = { batch: 0, heads: huge, queryLength: huge, headDim: huge };
    const error = await errorOf(async () => {
      expect(await imported.attention({ ...none(), shape })).toHaveLength(0);
    });
    if (error !== undefined) expectRefused(error, WRONG_SIZE);
  });

  test('a result that no memory can hold', async () => {
    const codes = ['ERR_OUT_OF_MEMORY', 'ERR_OUT_OF_RANGE'];
    const calls = [
      ['lshPlanes', { bits: 64, dim: 2 ** 31 - 1 }],
      [
        'aggregate',
        {
          inputs: new Float32Array(0),
          labels: new Int32Array(0),
          shape: { batch: 1, length: 0, dim: 2 ** 24 },
          clusters: 2 ** 24,
        },
      ],
      [
        'centroidPool',
        {
          inputs: new Float32Array(0),
          shape: { batch: 2 ** 31 - 1, length: 0, dim: 2 ** 31 - 1 },
          centroids: 2 ** 31 - 1,
        },
      ],
    ];
    for (const [name, options] of calls) {
      for (const form of [required[`${name}Sync`], imported[name]]) {
        expect(codes).toContain((await errorOf(() => form(options)))?.code);
      }
    }
    const { minimal } = operations.lshPlanes;
    expect(await imported.lshPlanes(minimal())).toEqual(required.lshPlanesSync(minimal()));
  });
});

describe('signal', () => {
  const { minimal } = operations.attention;

  test.each([
    ['an object', {}],
    ['what looks like one', { aborted: true, reason: 1 }],
    ['a text', 'abort'],
    ['a number', 5],
    ['a flag', true],
    ['a controller', new AbortController()],
    ['another target of events', new EventTarget()],
    ['an object with its methods', Object.create(AbortSignal.prototype)],
  ])('refuses %s', async (_what, signal) => {
    const { backward, output } = await imported.attentionVjp(minimal());
    const calls = [
      () => imported.attention({ ...minimal(), signal }),
      () => required.attention({ ...minimal(), signal }),
      () => imported.attentionVjp({ ...minimal(), signal }),
      () => required.attentionSync({ ...minimal(), signal }),
      () => backward(output, { signal }),
    ];
    for (const call of calls) expectRefused(await errorOf(call), WRONG_KIND, 'signal');
  });
});

describe('a sparse index list', () => {
  test('needs clusters beside labels and labels beside clusters', async () => {
    const { minimal, arguments: known } = operations.sparseDot;
    const labels = known.labels.valid();
    await expectBothRefuse('sparseDot', () => ({ ...minimal(), labels }), WRONG_KIND, 'clusters');
  });
});

describe('cast indices', () => {
  test('a token twice in one cluster is refused', async () => {
    const { minimal, arguments: known } = operations.castAttention;
    const indices = known.indices.valid();
    indices[1] = indices[0];
    await expectBothRefuse(
      'castAttention',
      () => ({ ...minimal(), indices }),
      WRONG_VALUE,
      'indices',
    );
  });
});

describe('setNumThreads', () => {
  test.each([0, -1, 1.5, NaN, Infinity, 2 ** 32, 2 ** 53])('refuses %d', async (count) => {
    expectRefused(await errorOf(() => required.setNumThreads(count)), WRONG_VALUE);
  });

  test.each(['2', 2n, null, undefined, {}, true])('refuses %o', async (count) => {
    expectRefused(await errorOf(() => required.setNumThreads(count)), WRONG_KIND);
  });

  test('is read back by getNumThreads', () => {
    const before = required.getNumThreads();
    required.setNumThreads(3);
    expect(imported.getNumThreads()).toBe(3);
    required.setNumThreads(before);
    expect(required.getNumThreads()).toBe(before);
  });
});
