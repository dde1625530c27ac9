// JavaScript that means harm: the answer is right, or an error with a documented code; never a
// crash, never memory that is not the caller's.

import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { expectSameResult } from './support/compare.mjs';
import { inputArrays, names, operations, withOption } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';
import { CODES, errorOf, expectBothRefuse, WRONG_KIND } from './support/refusal.mjs';

const detach = (array) => structuredClone(array.buffer, { transfer: [array.buffer] });
const defineGetter = (object, name, get) =>
  Object.defineProperty(object, name, { get, enumerable: true, configurable: true });

/** The call gives `expected`, or fails with a documented code. */
async function expectRightOrRefused(call, expected) {
  let result;
  try {
    result = await call();
  } catch (error) {
    expect(CODES).toContain(error.code);
    return;
  }
  expectSameResult(result, expected);
}

describe.each(names)('%s', (name) => {
  const { minimal, arguments: known } = operations[name];
  const sync = required[`${name}Sync`];
  const bothForms = [sync, imported[name]];
  const expected = () => sync(minimal());
  const arrays = inputArrays(minimal()).map(([input]) => input);

  if (arrays.length > 0) {
    test('only what really is a typed array of the kind is taken', async () => {
      for (const [input, array] of inputArrays(minimal())) {
        const disguised = new Uint8Array(array.length);
        Object.setPrototypeOf(disguised, Object.getPrototypeOf(array));
        const tagged = new Uint8Array(array.length);
        Object.defineProperty(tagged, Symbol.toStringTag, { value: array.constructor.name });
        const { proxy: revoked, revoke } = Proxy.revocable(array, {});
        revoke();
        const impostors = [
          new Proxy(array, {}),
          revoked,
          Object.create(array.constructor.prototype),
          { length: array.length, buffer: array.buffer, byteOffset: 0, ...Array.from(array) },
          disguised,
          tagged,
        ];
        for (const impostor of impostors) {
          await expectBothRefuse(
            name,
            () => ({ ...minimal(), [input]: impostor }),
            WRONG_KIND,
            input,
          );
        }
      }
    });
  }

  if (arrays.length > 0) {
    test('lengths that lie are not believed', async () => {
      for (const [input, array] of inputArrays(minimal())) {
        class Subclass extends array.constructor {
          get length() {
            return 1e9;
          }
          get byteLength() {
            return 4e9;
          }
          get buffer() {
            return new ArrayBuffer(1);
          }
        }
        const own = array.slice();
        Object.defineProperty(own, 'length', { value: 1e9 });
        Object.defineProperty(own, 'byteOffset', { value: -64 });
        Object.defineProperty(own, 'constructor', { value: Float64Array });
        for (const liar of [Subclass.from(array), own]) {
          for (const form of bothForms) {
            expectSameResult(await form({ ...minimal(), [input]: liar }), expected());
          }
        }
      }
    });
  }

  test('every option is read at most once', async () => {
    for (const form of bothForms) {
      const reads = new Map();
      const watch = (object, prefix) => {
        const watched = {};
        for (const [option, value] of Object.entries(object)) {
          defineGetter(watched, option, () => {
            reads.set(prefix + option, (reads.get(prefix + option) ?? 0) + 1);
            return option === 'shape' ? watch(value, 'shape.') : value;
          });
        }
        return watched;
      };
      expectSameResult(await form(watch(minimal(), '')), expected());
      for (const [option, count] of reads) expect(count, option).toBe(1);
    }
  });

  test('a getter that throws: its own error comes through', async () => {
    const thrown = new Error('from the getter');
    for (const option of Object.keys(minimal())) {
      for (const form of bothForms) {
        const options = defineGetter(minimal(), option, () => {
          throw thrown;
        });
        expect(await errorOf(() => form(options))).toBe(thrown);
      }
    }
  });

  if (arrays.length > 0) {
    test('a getter that detaches or shrinks another array', async () => {
      for (const victim of arrays) {
        for (const trigger of [...Object.keys(minimal()), 'seed', 'scale', 'out']) {
          if (trigger === victim || (!(trigger in minimal()) && !known[trigger])) continue;
          for (const form of bothForms) {
            const detaching = minimal();
            const value = detaching[trigger];
            defineGetter(detaching, trigger, () => {
              if (detaching[victim].byteLength > 0) detach(detaching[victim]);
              return value;
            });
            await expectRightOrRefused(() => form(detaching), expected());

            const shrinking = minimal();
            const { constructor, byteLength } = shrinking[victim];
            const buffer = new ArrayBuffer(byteLength, { maxByteLength: 2 * byteLength });
            const tracking = new constructor(buffer);
            tracking.set(shrinking[victim]);
            shrinking[victim] = tracking;
            defineGetter(shrinking, trigger, () => {
              buffer.resize(8);
              return value;
            });
            await expectRightOrRefused(() => form(shrinking), expected());
          }
        }
      }
    });
  }

  if (arrays.length > 0) {
    test('detached and shared memory', async () => {
      for (const [input, array] of inputArrays(minimal())) {
        const detached = array.slice();
        detach(detached);
        for (const form of bothForms) {
          const error = await errorOf(() => form({ ...minimal(), [input]: detached }));
          expect([error.code, error.message]).toEqual([
            'ERR_SHAPE_MISMATCH',
            expect.stringMatching(/received a detached/),
          ]);
        }
        const shared = new array.constructor(
          new SharedArrayBuffer(array.byteLength + 16),
          8,
          array.length,
        );
        shared.set(array);
        for (const form of bothForms) {
          expectSameResult(await form({ ...minimal(), [input]: shared }), expected());
        }
      }
    });
  }

  if (arrays.length > 0) {
    test('resizable memory: views that track it and views out of bounds', async () => {
      for (const [input, array] of inputArrays(minimal())) {
        const bytes = array.byteLength;
        const resizable = () => new ArrayBuffer(bytes, { maxByteLength: 4 * bytes });
        const views = [
          (buffer) => new array.constructor(buffer),
          (buffer) => new array.constructor(buffer, 0, array.length),
        ];
        for (const makeView of views) {
          const buffer = resizable();
          const view = makeView(buffer);
          view.set(array);
          for (const form of bothForms) {
            await expectRightOrRefused(() => form({ ...minimal(), [input]: view }), expected());
          }
          buffer.resize(bytes - 8);
          for (const form of bothForms) {
            const error = await errorOf(() => form({ ...minimal(), [input]: view }));
            expect(CODES).toContain(error?.code);
          }
        }
      }
    });
  }

  test('options on Object.prototype are not options', async () => {
    const more = { scale: 5, seed: 9, causal: true, details: true, nonFinite: 'propagate' };
    const pollution = {
      ...more,
      labels: 7,
      out: new Float32Array(3),
      length: 1,
      keyLength: 3,
      planes: 1,
    };
    const clean = expected();
    const [first, second] = [minimal(), minimal()];
    const polluted = [];
    try {
      for (const [option, value] of Object.entries(pollution)) {
        // oxlint-disable-next-line no-extend-native
        Object.defineProperty(Object.prototype, option, {
          value,
          configurable: true,
          writable: true,
        });
      }
      polluted.push(sync(first), imported[name](second));
    } finally {
      for (const option of Object.keys(pollution)) delete Object.prototype[option];
    }
    for (const result of polluted) expectSameResult(await result, clean);
  });

  test.each([
    ['refuses assignments', { value: 5, writable: false }],
    ['takes assignments away', { get: () => 3, set: () => {} }],
  ])('errors arrive where Object.prototype %s', async (_what, descriptor) => {
    const wrong = () => ({ ...minimal(), nonFinite: 'never' });
    const unfit = [];
    for (const [input, array] of inputArrays(minimal())) {
      const bad = array.slice();
      const real = array instanceof Float32Array;
      if (real) bad[0] = NaN; // found by the native code
      unfit.push({ ...minimal(), [input]: real ? bad : bad.subarray(1) });
    }
    const polluted = ['code', 'argument', 'index', 'status', 'length', 'query', 'inputs', 'output'];
    const errors = [];
    try {
      for (const option of polluted) {
        const attributes = { __proto__: null, ...descriptor, configurable: true };
        // oxlint-disable-next-line no-extend-native
        Object.defineProperty(Object.prototype, option, attributes);
      }
      for (const options of [wrong(), ...unfit]) {
        for (const form of bothForms) {
          try {
            errors.push(await form(options));
          } catch (error) {
            errors.push(error);
          }
        }
      }
    } finally {
      for (const option of polluted) delete Object.prototype[option];
    }
    for (const error of errors) {
      expect(error).toBeInstanceOf(Error);
      expect(Object.keys(error)).toContain('code');
      expect(CODES).toContain(error.code);
    }
  });

  test('inherited options are not options, an object without prototype is fine', async () => {
    const bare = Object.assign(Object.create(null), minimal());
    if (bare.shape) bare.shape = Object.assign(Object.create(null), bare.shape);
    expectSameResult(await imported[name](bare), expected());
    const heir = Object.create(minimal());
    for (const form of bothForms) {
      expect(CODES).toContain((await errorOf(() => form(heir)))?.code);
    }
  });

  test('a Proxy as options object', async () => {
    for (const form of bothForms) {
      await expectRightOrRefused(() => form(new Proxy(minimal(), {})), expected());
      const trap = new Error('trap');
      const traps = {
        ownKeys: () => {
          throw trap;
        },
        get: () => {
          throw trap;
        },
      };
      expect(await errorOf(() => form(new Proxy(minimal(), traps)))).toBe(trap);
    }
  });

  test('random hostile options: an answer or a documented error', async () => {
    await fc.assert(
      fc.asyncProperty(hostileChanges(known), fc.boolean(), async (changes, synchronous) => {
        let options = minimal();
        for (const [path, value] of changes) options = withOption(options, path, value);
        const error = await errorOf(() => (synchronous ? sync : imported[name])(options));
        if (error !== undefined) expect(CODES, error.message).toContain(error.code);
      }),
      { numRuns: 300, seed: 1, endOnFailure: true },
    );
  });
});

/** Sizes that break address arithmetic, and things that only look like sizes. */
const HOSTILE_SIZES = [
  [0, -0, -1, 1.5, NaN, Infinity, -Infinity],
  [2 ** 31 + 1, 2 ** 32 - 1, 2 ** 32 + 1, 2 ** 53, '8', 8n, { valueOf: () => 8 }, null],
].flat();

/** Changes to some options. Steps are kept small: a huge number of them is valid, and takes ages. */
function hostileChanges(known) {
  const array = fc
    .tuple(
      fc.constantFrom(Float32Array, Int32Array, BigUint64Array, Uint8Array, Float64Array),
      fc.integer({ min: 0, max: 90 }),
      fc.constantFrom(0, 1, -1, 2, 1e30, NaN, Infinity),
    )
    .map(([Class, length, value]) =>
      Class === BigUint64Array ? new Class(length) : new Class(length).fill(value),
    );
  const anything = fc.oneof(
    fc.constantFrom(...HOSTILE_SIZES),
    array,
    fc.anything({ withBigInt: true, withTypedArray: true, withNullPrototype: true }),
  );
  const changes = Object.entries(known).map(([path, argument]) => {
    const small = fc.integer({ min: -1, max: 70 });
    const kinds = {
      array: fc.oneof(array, anything),
      size: argument.slow ? small : fc.oneof(small, fc.constantFrom(...HOSTILE_SIZES)),
      number: fc.oneof(fc.double(), anything),
      choice: fc.oneof(fc.constantFrom(undefined, ...(argument.values ?? [])), anything),
      boolean: fc.oneof(fc.boolean(), anything),
    };
    return fc.tuple(fc.constant(path), kinds[argument.kind]);
  });
  return fc.array(fc.oneof(...changes), { minLength: 1, maxLength: 4 });
}

test('an array that was detached is not an empty one', async () => {
  const empty = () => ({
    query: new Float32Array(0),
    key: new Float32Array(0),
    value: new Float32Array(0),
    shape: { batch: 0, heads: 1, queryLength: 2, headDim: 4 },
  });
  for (const form of [required.attentionSync, imported.attention]) {
    expect(await form(empty())).toHaveLength(0);
    for (const input of ['query', 'key', 'value']) {
      const options = empty();
      detach(options[input]);
      expect((await errorOf(() => form(options))).code).toBe('ERR_SHAPE_MISMATCH');
    }
  }
});
