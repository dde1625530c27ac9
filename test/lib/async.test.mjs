// The asynchronous form: off the main thread, on the bytes of the call, and abortable.

import { getEventListeners } from 'node:events';
import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import { expectAll, expectSameBits, expectSameResult } from './support/compare.mjs';
import { normals } from './support/data.mjs';
import { inputArrays, names, operations } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';

const { attention, attentionSync } = imported;
const nextTick = () => new Promise((resolve) => setImmediate(resolve));

const ENDLESS = { batch: 1, heads: 1, queryLength: 300_000, headDim: 8 };
const endlessInputs = normals(ENDLESS.queryLength * ENDLESS.headDim, 1600);

/** A call with far more work than this suite has time for: it can only end by its signal. */
function endlessCall(options) {
  const inputs = { query: endlessInputs, key: endlessInputs, value: endlessInputs };
  const call = { settled: false };
  call.promise = attention({ ...inputs, shape: ENDLESS, ...options });
  call.promise.catch(() => {}).finally(() => (call.settled = true));
  return call;
}

/** Runs a body beside an endless call, which is still at work when the body is done. */
async function besideEndlessCalls(count, body) {
  const controller = new AbortController();
  const { signal } = controller;
  const calls = Array.from({ length: count }, () => endlessCall({ signal }));
  await body();
  expect(calls.some(({ settled }) => settled)).toBe(false);
  controller.abort('enough');
  for (const { promise } of calls) await expect(promise).rejects.toBe('enough');
}

describe('while long calls run', () => {
  const turnHundredTimes = async () => {
    for (let turn = 0; turn < 100; ++turn) await nextTick();
  };
  const fireTenTimes = () =>
    new Promise((resolve) => {
      let fired = 0;
      const timer = setInterval(() => {
        fired += 1;
        if (fired < 10) return;
        clearInterval(timer);
        resolve();
      }, 1);
    });

  test.each([
    ['the event loop turns', turnHundredTimes],
    ['timers fire', fireTenTimes],
    ['files are read', () => readFile(new URL(import.meta.url))],
  ])('%s', async (_what, body) => {
    await besideEndlessCalls(1, body);
    await besideEndlessCalls(5, body);
  });

  test('also with one thread', async () => {
    const before = required.getNumThreads();
    required.setNumThreads(1);
    try {
      await besideEndlessCalls(2, turnHundredTimes);
    } finally {
      required.setNumThreads(before);
    }
  });

  test('a short call overtakes a long one, a synchronous call too', async () => {
    const before = required.getNumThreads();
    required.setNumThreads(2);
    const { typical } = operations.attention;
    const expected = attentionSync(typical());
    try {
      await besideEndlessCalls(1, async () => {
        expectSameResult(await attention(typical()), expected);
        expectSameResult(attentionSync(typical()), expected);
      });
    } finally {
      required.setNumThreads(before);
    }
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

  test.each([0, 1, 2, 50])('aborted %d turns into the call', async (turns) => {
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error('enough');
    const out = new Float32Array(endlessInputs.length).fill(3);
    const { promise } = endlessCall({ signal, out });
    for (let turn = 0; turn < turns; ++turn) await nextTick();
    controller.abort(reason);
    await expect(promise).rejects.toBe(reason);
    expectAll(out, 3);
    // Also when the work behind it has had time to notice.
    await attention(operations.attention.typical());
    expectAll(out, 3);
  });

  test('calls after an abort, and beside it, are right', async () => {
    const { typical } = operations.attention;
    const expected = attentionSync(typical());
    for (let i = 0; i < 8; ++i) {
      const controller = new AbortController();
      const { promise } = endlessCall({ signal: controller.signal });
      const beside = attention(typical());
      await nextTick();
      controller.abort(i);
      await expect(promise).rejects.toBe(i);
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
    const { signal } = new AbortController();
    const { minimal } = operations.attention;
    const calls = Array.from({ length: 20 }, () => attention({ ...minimal(), signal }));
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    await Promise.all(calls);
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });

  test('what its owner has put on a signal is not run', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const trap = () => {
      throw new Error('of the owner');
    };
    for (const name of ['aborted', 'reason']) Object.defineProperty(signal, name, { get: trap });
    for (const name of ['addEventListener', 'removeEventListener']) signal[name] = trap;
    const { promise } = endlessCall({ signal });
    await nextTick();
    controller.abort('enough');
    await expect(promise).rejects.toBe('enough');
    await expect(endlessCall({ signal }).promise).rejects.toBe('enough');
  });
});
