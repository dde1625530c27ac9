// The asynchronous form: off the main thread, on the bytes of the call, and abortable.

import { describe, expect, test } from 'vitest';
import { expectSameBits, expectSameResult } from './support/compare.mjs';
import { attentionInputs, normals } from './support/data.mjs';
import { inputArrays, names, operations } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';

const { attention, attentionSync } = imported;
const LONG = { batch: 1, heads: 4, queryLength: 3000, headDim: 64 };
/** A call of some tenths of a second. */
const longCall = () => ({ ...attentionInputs(LONG, 1600), shape: LONG });
const nextTick = () => new Promise((resolve) => setImmediate(resolve));

/** How often the event loop turned while the promise was pending. */
async function turnsDuring(promise) {
  let turns = 0;
  let pending = true;
  const done = promise.finally(() => {
    pending = false;
  });
  while (pending) {
    await nextTick();
    turns += 1;
  }
  await done;
  return turns;
}

describe('the event loop stays free', () => {
  test('it turns many times while a long call runs', async () => {
    expect(await turnsDuring(attention(longCall()))).toBeGreaterThan(20);
  });

  test('also when one thread computes, and while several calls wait', async () => {
    const before = required.getNumThreads();
    required.setNumThreads(1);
    try {
      const calls = [attention(longCall()), attention(longCall()), attention(longCall())];
      expect(await turnsDuring(Promise.all(calls))).toBeGreaterThan(20);
    } finally {
      required.setNumThreads(before);
    }
  });

  test('timers fire between a call and its result', async () => {
    let fired = 0;
    const timer = setInterval(() => (fired += 1), 1);
    await attention(longCall());
    clearInterval(timer);
    expect(fired).toBeGreaterThan(3);
  });

  test('a short call overtakes a long one', async () => {
    const order = [];
    const { minimal } = operations.topK;
    const long = attention(longCall()).then(() => order.push('long'));
    await imported.topK(minimal()).then(() => order.push('short'));
    await long;
    expect(order).toEqual(['short', 'long']);
  });
});

describe.each(names)('%s uses the bytes of the call', (name) => {
  const { typical } = operations[name];
  const damage = {
    overwrite: (array) => array.fill(array instanceof BigUint64Array ? 5n : 1),
    transfer: (array) => structuredClone(array.buffer, { transfer: [array.buffer] }),
  };

  test.each(Object.keys(damage))('%s right after the call', async (kind) => {
    const expected = required[`${name}Sync`](typical());
    const options = typical();
    const pending = imported[name](options);
    for (const [, array] of inputArrays(options)) damage[kind](array);
    for (const key of Object.keys(options)) options[key] = undefined;
    expectSameResult(await pending, expected);
  });
});

describe('resizable inputs', () => {
  test('shrinking right after the call does not matter', async () => {
    const options = operations.attention.minimal();
    const buffer = new ArrayBuffer(options.query.byteLength, { maxByteLength: 4096 });
    const query = new Float32Array(buffer);
    query.set(options.query);
    const pending = attention({ ...options, query });
    buffer.resize(0);
    expectSameBits(await pending, attentionSync(options));
  });
});

describe('many calls at once', () => {
  test('each gets its own result', async () => {
    const calls = names.flatMap((name) =>
      Array.from({ length: 6 }, (_, i) => {
        const { minimal, typical } = operations[name];
        return [name, i % 2 === 0 ? minimal() : typical()];
      }),
    );
    const results = await Promise.all(calls.map(([name, options]) => imported[name](options)));
    calls.forEach(([name, options], i) => {
      expectSameResult(results[i], required[`${name}Sync`](options));
    });
  });

  test('the number of threads may change meanwhile', async () => {
    const before = required.getNumThreads();
    const { typical } = operations.attention;
    const pending = [];
    for (let i = 0; i < 40; ++i) {
      required.setNumThreads(1 + (i % 5));
      pending.push(attention(typical()));
      if (i % 7 === 0) await nextTick();
    }
    required.setNumThreads(before);
    const expected = attentionSync(typical());
    for (const result of await Promise.all(pending)) expectSameResult(result, expected);
  });

  test('failures among them stay where they belong', async () => {
    const { minimal } = operations.attention;
    const calls = Array.from({ length: 30 }, (_, i) => {
      const options = minimal();
      if (i % 3 === 0) options.key[4] = NaN;
      return attention(options);
    });
    const settled = await Promise.allSettled(calls);
    settled.forEach(({ status, reason }, i) => {
      expect(status).toBe(i % 3 === 0 ? 'rejected' : 'fulfilled');
      if (reason) expect(reason.code).toBe('ERR_NON_FINITE');
    });
  });
});

describe('AbortSignal', () => {
  const longOut = () => new Float32Array(4 * 3000 * 64).fill(3);

  test('aborted before the call: its reason, and nothing is computed', async () => {
    const reason = { custom: 'reason' };
    for (const name of names) {
      const signal = AbortSignal.abort(reason);
      await expect(imported[name]({ ...operations[name].minimal(), signal })).rejects.toBe(reason);
    }
  });

  test('the default reason is an AbortError', async () => {
    const signal = AbortSignal.abort();
    const options = { ...operations.attention.minimal(), signal };
    await expect(attention(options)).rejects.toMatchObject({ name: 'AbortError' });
  });

  test.each([0, 1, 2, 5])('aborted %d turns into a long call', async (turns) => {
    const controller = new AbortController();
    const reason = new Error('enough');
    const out = longOut();
    const pending = attention({ ...longCall(), signal: controller.signal, out });
    const settled = pending.then(
      () => 'fulfilled',
      (error) => error,
    );
    for (let turn = 0; turn < turns; ++turn) await nextTick();
    controller.abort(reason);
    expect(await settled).toBe(reason);
    expect(out.every((value) => value === 3)).toBe(true);
  });

  test('out stays untouched also after the work behind it has ended', async () => {
    const controller = new AbortController();
    const out = longOut();
    const pending = attention({ ...longCall(), signal: controller.signal, out });
    controller.abort();
    await expect(pending).rejects.toMatchObject({ name: 'AbortError' });
    // A later call of the same kind waits for whatever still runs.
    await attention(operations.attention.typical());
    expect(out.every((value) => value === 3)).toBe(true);
  });

  test('calls after an abort, and beside it, are right', async () => {
    const { typical } = operations.attention;
    const expected = attentionSync(typical());
    for (let i = 0; i < 8; ++i) {
      const controller = new AbortController();
      const aborted = attention({ ...longCall(), signal: controller.signal });
      const beside = attention(typical());
      await nextTick();
      controller.abort(i);
      await expect(aborted).rejects.toBe(i);
      expectSameResult(await beside, expected);
      expectSameResult(await attention(typical()), expected);
    }
  });

  test('aborting after the result changes nothing', async () => {
    const controller = new AbortController();
    const { minimal } = operations.attention;
    const output = await attention({ ...minimal(), signal: controller.signal });
    controller.abort();
    expectSameBits(output, attentionSync(minimal()));
  });

  test('one signal serves many calls and keeps no listener', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const added = [];
    const removed = [];
    for (const [list, method] of [
      [added, 'addEventListener'],
      [removed, 'removeEventListener'],
    ]) {
      const original = signal[method].bind(signal);
      signal[method] = (...parameters) => {
        list.push(parameters[1]);
        return original(...parameters);
      };
    }
    const { minimal } = operations.attention;
    await Promise.all(Array.from({ length: 20 }, () => attention({ ...minimal(), signal })));
    expect(new Set(removed)).toEqual(new Set(added));
  });

  test('an aborted call on a huge input stops computing', async () => {
    // Far more work than this suite has time for: only a call that really stops lets it go on.
    const huge = { batch: 1, heads: 1, queryLength: 400_000, headDim: 8 };
    const controller = new AbortController();
    const inputs = normals(huge.queryLength * 8, 1610);
    const options = { query: inputs, key: inputs, value: inputs, shape: huge };
    const pending = attention({ ...options, signal: controller.signal });
    await nextTick();
    controller.abort('stop');
    await expect(pending).rejects.toBe('stop');
    const before = required.getNumThreads();
    required.setNumThreads(1);
    await attention(operations.attention.typical());
    required.setNumThreads(before);
  });
});
