// The numbers of the gradients: against central differences of the float64 oracle, and between
// layouts, forms, thread counts and batches.

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { expectAll, expectClose, expectSameBits, expectSameResult } from './support/compare.mjs';
import { normals, oddView, swapAxes } from './support/data.mjs';
import { differentiable, finiteDifferences, gradientCases } from './support/gradients.mjs';
import { inputArrays, operations } from './support/operations.mjs';
import { imported, required } from './support/package.mjs';

/** float32 gradients against central differences. */
const BOUND = 1e-5;

/** Output and gradients, which must have the same bits in both forms. */
async function differentiate(name, options, gradOutput) {
  const state = await imported[`${name}Vjp`](options);
  const gradients = await state.backward(gradOutput);
  const stateSync = required[`${name}VjpSync`](options);
  expectSameResult(stateSync.backward(gradOutput), gradients);
  return { ...state, gradients };
}

const gradOutputOf = (output, seed) => normals(output.length, seed);

describe.each(differentiable)('%s', (name) => {
  const sync = (options, gradOutput) => required[`${name}VjpSync`](options).backward(gradOutput);

  test.each(gradientCases[name])('equals finite differences: $title', async (one) => {
    const options = { ...one.options(), details: true };
    const gradOutput = gradOutputOf(required[`${name}Sync`](options).output, 3100);
    const { gradients, ...result } = await differentiate(name, options, gradOutput);
    expect(Object.keys(gradients).toSorted()).toEqual(one.of.toSorted());
    const oracle = (moved) => one.oracle(moved, result);
    for (const input of one.of) {
      const expected = finiteDifferences(oracle, options, input, gradOutput);
      expectClose(gradients[input], expected, BOUND);
    }
  });

  test.each(['minimal', 'typical'])('keeps the value of the operation: %s', async (kind) => {
    const options = { ...operations[name][kind](), details: true };
    const expected = required[`${name}Sync`](options);
    for (const form of [imported[`${name}Vjp`], required[`${name}VjpSync`]]) {
      const { backward, dispose, ...value } = await form(options);
      expectSameResult(value, expected);
      expect(backward).toBeTypeOf('function');
      expect(dispose).toBeTypeOf('function');
    }
  });

  test('is linear in gradOutput: twice the gradient, and 0 for 0', () => {
    const options = operations[name].typical();
    const state = required[`${name}VjpSync`](options);
    const gradOutput = gradOutputOf(state.output, 3110);
    const once = state.backward(gradOutput);
    const twice = state.backward(gradOutput.map((x) => 2 * x));
    const none = state.backward(gradOutput.map(() => 0));
    for (const [input, gradient] of Object.entries(once)) {
      expectClose(
        twice[input],
        gradient.map((x) => 2 * x),
        BOUND,
      );
      expectAll(none[input].map(Math.abs), 0);
    }
  });

  test('views at odd offsets give the same bits', async () => {
    const options = operations[name].typical();
    const { output } = required[`${name}VjpSync`](options);
    const gradOutput = gradOutputOf(output, 3120);
    const views = { ...options };
    for (const [input, array] of inputArrays(options)) views[input] = oddView(array);
    const { gradients } = await differentiate(name, views, oddView(gradOutput));
    expectSameResult(gradients, sync(options, gradOutput));
  });

  const { layout } = operations[name].arguments;
  if (layout !== undefined) {
    test('BLHD gives the gradients of BHLD, in BLHD', async () => {
      const options = operations[name].typical();
      const {
        batch,
        heads,
        queryLength,
        keyLength = queryLength,
        headDim,
        valueDim,
      } = options.shape;
      const axes = {
        query: [queryLength, headDim],
        key: [keyLength, headDim],
        value: [keyLength, valueDim],
        output: [queryLength, valueDim],
      };
      const swap = (array, input) => swapAxes(array, batch, heads, ...axes[input]);
      const { output } = required[`${name}VjpSync`](options);
      const gradOutput = gradOutputOf(output, 3130);
      const inLayout = { ...options, layout: 'BLHD' };
      for (const input of ['query', 'key', 'value']) {
        if (options[input]) inLayout[input] = swap(options[input], input);
      }
      const upstream = name === 'sparseDot' ? gradOutput : swap(gradOutput, 'output');
      const { gradients } = await differentiate(name, inLayout, upstream);
      for (const [input, gradient] of Object.entries(sync(options, gradOutput))) {
        expectClose(gradients[input], axes[input] ? swap(gradient, input) : gradient, BOUND);
      }
    });
  }

  test('a batch of none has empty gradients', () => {
    const options = operations[name].minimal();
    const empty = { ...options, shape: { ...options.shape, batch: 0 } };
    for (const [input, array] of inputArrays(options)) {
      if (operations[name].batched.includes(input)) empty[input] = new array.constructor(0);
    }
    const state = required[`${name}VjpSync`](empty);
    for (const [input, gradient] of Object.entries(state.backward(new Float32Array(0)))) {
      if (operations[name].batched.includes(input)) expect(gradient).toHaveLength(0);
      else expectAll(gradient, 0);
    }
  });
});

describe('thread counts', () => {
  let before;
  beforeEach(() => {
    before = required.getNumThreads();
  });
  afterEach(() => required.setNumThreads(before));

  test.each(differentiable)('%s is the same with 1, 2, 3 and 8', async (name) => {
    const options = operations[name].typical();
    const run = (threads) => {
      required.setNumThreads(threads);
      const state = required[`${name}VjpSync`](options);
      return state.backward(gradOutputOf(state.output, 3140));
    };
    const expected = run(1);
    for (const threads of [2, 3, 8]) {
      expectSameResult(run(threads), expected);
      const state = await imported[`${name}Vjp`](options);
      expectSameResult(await state.backward(gradOutputOf(state.output, 3140)), expected);
    }
  });
});

test('detachMass changes the gradients by query and key alone', () => {
  const { options } = gradientCases.improvedClusteredAttention[0];
  const run = (detachMass) => {
    const state = required.improvedClusteredAttentionVjpSync({ ...options(), detachMass });
    return state.backward(gradOutputOf(state.output, 3150));
  };
  const exact = run(false);
  const detached = run(true);
  expectSameBits(detached.value, exact.value);
  for (const input of ['query', 'key']) expect(detached[input]).not.toEqual(exact[input]);
  expectSameResult(run(undefined), exact);
});

test('with all keys selected the gradients are those of exact attention', () => {
  const { options } = gradientCases.attention.find(({ title }) => title === 'lengths');
  const improved = required.improvedClusteredAttentionVjpSync({
    ...options(),
    clusters: 3,
    topK: 6,
  });
  const exact = required.attentionVjpSync(options());
  const gradOutput = gradOutputOf(exact.output, 3160);
  const expected = exact.backward(gradOutput);
  for (const [input, gradient] of Object.entries(improved.backward(gradOutput))) {
    expectClose(gradient, expected[input], BOUND);
  }
});
