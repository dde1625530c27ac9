// The contract of the Vjp forms: what is saved, what may change meanwhile, and what is refused.

import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { expectSameBits, expectSameResult } from './support/compare.mjs';
import { normals } from './support/data.mjs';
import { differentiable } from './support/gradients.mjs';
import { inputArrays, operations } from './support/operations.mjs';
import { entry, imported, required } from './support/package.mjs';
import {
  errorOf,
  expectRefused,
  WRONG_KIND,
  WRONG_LENGTH,
  WRONG_VALUE,
} from './support/refusal.mjs';

const transfer = (array) => structuredClone(array.buffer, { transfer: [array.buffer] });
const damage = { overwrite: (array) => array.fill(1), transfer };
const DISPOSED = { type: Error, codes: ['ERR_UNSUPPORTED'] };

/** Both forms of one operation, as [title, start(options)]. */
const formsOf = (name) => [
  ['async', (options) => imported[`${name}Vjp`](options)],
  ['sync', (options) => required[`${name}VjpSync`](options)],
];

test('functions carry their own names', () => {
  for (const name of differentiable) {
    expect(required[`${name}Vjp`].name).toBe(`${name}Vjp`);
    expect(required[`${name}VjpSync`].name).toBe(`${name}VjpSync`);
    expect(imported[`${name}Vjp`]).toBe(required[`${name}Vjp`]);
  }
});

describe.each(differentiable)('%s', (name) => {
  const { minimal, typical } = operations[name];
  const upstream = (output) => normals(output.length, 3200);
  const expected = (make) => {
    const state = required[`${name}VjpSync`](make());
    return state.backward(upstream(state.output));
  };

  describe.each(formsOf(name))('%s', (form, start) => {
    test('backward may be called twice, until dispose', async () => {
      const state = await start(typical());
      const first = await state.backward(upstream(state.output));
      const other = await state.backward(upstream(state.output).map((x) => -x));
      expectSameResult(await state.backward(upstream(state.output)), first);
      expect(other).not.toEqual(first);
      state.dispose();
      state.dispose();
      state[Symbol.dispose]();
      const error = await errorOf(() => state.backward(upstream(state.output)));
      expectRefused(error, DISPOSED, 'backward');
    });

    test('gives only the gradients that are wanted', async () => {
      const state = await start(minimal());
      const gradOutput = upstream(state.output);
      const all = await state.backward(gradOutput);
      for (const wanted of Object.keys(all)) {
        const one = await state.backward(gradOutput, { gradients: [wanted] });
        expectSameResult(one, { [wanted]: all[wanted] });
      }
      expect(await state.backward(gradOutput, { gradients: [] })).toEqual({});
      const refused = [
        ['labels', WRONG_KIND],
        [['labels'], WRONG_VALUE],
        [[7], WRONG_KIND],
        [[Object.keys(all)[0], null], WRONG_KIND],
      ];
      for (const [gradients, refusal] of refused) {
        const error = await errorOf(() => state.backward(gradOutput, { gradients }));
        expectRefused(error, refusal, 'gradients');
      }
    });

    test('refuses a wrong gradOutput', async () => {
      const state = await start(minimal());
      const { length } = state.output;
      const detached = new Float32Array(length);
      transfer(detached);
      const wrong = [
        [undefined, WRONG_KIND],
        [null, WRONG_KIND],
        [Array.from(state.output), WRONG_KIND],
        [new Float64Array(length), WRONG_KIND],
        [new Float32Array(length + 1), WRONG_LENGTH],
        [new Float32Array(0), WRONG_LENGTH],
        [detached, WRONG_LENGTH],
      ];
      for (const [gradOutput, refusal] of wrong) {
        expectRefused(await errorOf(() => state.backward(gradOutput)), refusal, 'gradOutput');
      }
      for (const bad of [7, 'all', () => {}]) {
        const error = await errorOf(() => state.backward(state.output, bad));
        expectRefused(error, WRONG_KIND, 'options');
      }
      for (const unknown of [{ gradient: ['query'] }, { precision: 'bfloat16' }]) {
        const error = await errorOf(() => state.backward(state.output, unknown));
        expect(error.code).toBe('ERR_INVALID_ARG_TYPE');
      }
    });

    test.each([NaN, Infinity])('names %d in gradOutput', async (bad) => {
      const options = minimal();
      const state = await start(options);
      const gradOutput = upstream(state.output);
      // Not every element is read: a row that takes part in nothing has no gradient.
      const read = gradOutput.findIndex((_, i) => {
        const unit = gradOutput.map((__, j) => (i === j ? 1 : 0));
        const gradients = Object.values(required[`${name}VjpSync`](minimal()).backward(unit));
        return gradients.some((gradient) => gradient.some((x) => x !== 0));
      });
      gradOutput[read] = bad;
      const error = await errorOf(() => state.backward(gradOutput));
      expect(error).toMatchObject({ code: 'ERR_NON_FINITE', argument: 'gradOutput', index: read });
      expect(error.message).toContain(`received ${bad}`);
      const lenient = await start({ ...minimal(), nonFinite: 'propagate' });
      const gradients = Object.values(await lenient.backward(gradOutput));
      expect(gradients.some((gradient) => gradient.some((x) => !Number.isFinite(x)))).toBe(true);
    });

    test('what the caller does to the results changes no gradient', async () => {
      for (const kind of Object.keys(damage)) {
        const state = await start({ ...typical(), details: true });
        const gradOutput = upstream(state.output);
        const { backward, dispose, ...value } = state;
        for (const array of Object.values(value)) {
          if (ArrayBuffer.isView(array)) damage[kind](array);
        }
        expectSameResult(await backward(gradOutput), expected(typical));
        dispose();
      }
    });

    test('labels, indices and lengths may change or go away', async () => {
      for (const kind of Object.keys(damage)) {
        const options = typical();
        const state = await start(options);
        for (const [, array] of inputArrays(options)) {
          if (!(array instanceof Float32Array)) damage[kind](array);
        }
        expectSameResult(await state.backward(upstream(state.output)), expected(typical));
      }
    });

    test('out receives the value', async () => {
      const plain = await start(minimal());
      const out = new Float32Array(plain.output.length);
      const state = await start({ ...minimal(), out });
      expect(state.output).toBe(out);
      expectSameBits(out, plain.output);
      const gradOutput = upstream(out);
      out.fill(NaN);
      expectSameResult(await state.backward(gradOutput), await plain.backward(gradOutput));
    });

    test('a backward whose options detach the inputs does not crash', async () => {
      const options = minimal();
      const state = await start(options);
      const gradOutput = upstream(state.output);
      const hostile = {
        get gradients() {
          for (const [, array] of inputArrays(options)) {
            if (array.byteLength > 0) transfer(array);
          }
          return undefined;
        },
      };
      const error = await errorOf(async () => {
        expectSameResult(await state.backward(gradOutput, hostile), expected(minimal));
      });
      if (error !== undefined) expectRefused(error, WRONG_LENGTH);
      if (form === 'async') expect(error).toBeUndefined();
    });
  });

  test('async: the inputs and gradOutput may change or go away', async () => {
    for (const kind of Object.keys(damage)) {
      const options = typical();
      const starting = imported[`${name}Vjp`](options);
      for (const [, array] of inputArrays(options)) damage[kind](array);
      const state = await starting;
      const gradOutput = upstream(state.output);
      const running = state.backward(gradOutput);
      damage[kind](gradOutput);
      state.dispose();
      expectSameResult(await running, expected(typical));
    }
  });

  test('a signal that is aborted rejects, and is refused by the synchronous form', async () => {
    const state = await imported[`${name}Vjp`](minimal());
    const gradOutput = upstream(state.output);
    const signal = AbortSignal.abort('enough');
    await expect(state.backward(gradOutput, { signal })).rejects.toBe('enough');
    await expect(state.backward(gradOutput, { signal: 7 })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARG_TYPE',
    });
    await expect(imported[`${name}Vjp`]({ ...minimal(), signal })).rejects.toBe('enough');
    const { backward } = required[`${name}VjpSync`](minimal());
    const error = await errorOf(() => backward(gradOutput, { signal }));
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED', argument: 'signal' });
  });

  test('wrong options are refused as by the operation', async () => {
    for (const [form, start] of formsOf(name)) {
      const error = await errorOf(() => start({ ...minimal(), shape: undefined }));
      expectRefused(error, WRONG_KIND, 'shape');
      const plain = form === 'async' ? imported[name] : required[`${name}Sync`];
      const same = await errorOf(() => plain({ ...minimal(), shape: undefined }));
      expect(error.message).toBe(same.message);
    }
  });
});

test('sync: an input that is detached before backward is named', () => {
  const options = operations.sparseDot.minimal();
  const state = required.sparseDotVjpSync(options);
  transfer(options.key);
  const error = (() => {
    try {
      return state.backward(state.output);
    } catch (caught) {
      return caught;
    }
  })();
  expectRefused(error, WRONG_LENGTH, 'key');
});

test('dispose frees the state, and so does forgetting it', () => {
  const script = `
    const ca = require(${JSON.stringify(entry)});
    const dim = 1 << 20;
    const call = () => ca.broadcastVjpSync({
      inputs: new Float32Array(dim), labels: new Int32Array(1),
      shape: { batch: 1, length: 1, dim }, clusters: 1 });
    const weighted = () => ca.sparseWeightedSumVjpSync({
      weights: new Float32Array(1), value: new Float32Array(dim), indices: new Int32Array(1), k: 1,
      shape: { batch: 1, heads: 1, queryLength: 1, valueDim: dim } });
    const held = () => { for (let i = 0; i < 4; ++i) gc(); return process.memoryUsage().arrayBuffers >> 20; };
    (async () => {
      call(); weighted();
      const before = held();
      const states = Array.from({ length: 8 }, weighted).map((state) => ({ ...state, output: undefined }));
      await null;
      const kept = held() - before;
      for (const state of states) state.dispose();
      await null;
      const disposed = held() - before;
      const forgotten = Array.from({ length: 8 }, weighted).length;
      await null;
      console.log(JSON.stringify({ kept, disposed, forgotten: held() - before, states: states.length }));
    })();
  `;
  const { stdout } = spawnSync(process.execPath, ['--expose-gc', '-e', script], {
    encoding: 'utf8',
  });
  const { kept, disposed, forgotten } = JSON.parse(stdout);
  expect(kept).toBeGreaterThanOrEqual(8 * 4);
  expect(disposed).toBeLessThan(8);
  expect(forgotten).toBeLessThan(8);
});
