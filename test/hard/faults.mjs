// Everything that can fail does: the k-th allocation of a call for k = 1, 2, ... until it succeeds,
// the memory for a call itself, the threads. Needs an addon built with CA_BUILD_TEST_HOOKS:
//   node scripts/hard-tests.cjs faults
// Each failure must be ERR_OUT_OF_MEMORY, leave no byte behind, and not disturb the next call.

import { isDeepStrictEqual } from 'node:util';
import { operations, names } from '../lib/support/operations.mjs';
import { binding, library } from './support/functions.mjs';
import { fail, figure, number } from './support/program.mjs';

/** More allocations than any operation makes. */
const MOST = number('most', 400);

let injected = 0;

async function outcome(call) {
  try {
    return { value: await call() };
  } catch (error) {
    return { error };
  }
}

function judge(what, { error }) {
  injected += 1;
  if (error.code !== 'ERR_OUT_OF_MEMORY') fail(`${what}: ${error.stack}`);
  const left = binding.bytesInUse();
  if (left !== 0) fail(`${what}: ${left} bytes are still in use`);
}

/** Fails one thing after the other by `inject` until the call succeeds, which it must do rightly. */
async function failEach(what, inject, call) {
  const expected = await call();
  for (let k = 1; k <= MOST; ++k) {
    inject(k);
    const result = await outcome(call);
    inject(0);
    if (result.error === undefined) {
      if (!isDeepStrictEqual(result.value, expected)) fail(`${what}: differs after ${k} failures`);
      return;
    }
    judge(`${what}, allocation ${k}`, result);
    const next = await outcome(call);
    if (!isDeepStrictEqual(next.value, expected)) fail(`${what}: the call after ${k} is wrong`);
  }
  fail(`${what}: still fails after ${MOST} allocations`);
}

/** Value and gradients of an operation in one call. */
function withGradients(name, suffix, options) {
  return async () => {
    const state = await library[`${name}Vjp${suffix}`](options());
    const gradients = await state.backward(new Float32Array(state.output.length).fill(0.5));
    state.dispose();
    return { output: state.output, ...gradients };
  };
}

for (const name of names) {
  const { minimal, typical } = operations[name];
  for (const [title, options] of [
    ['minimal', minimal],
    ['typical', typical],
  ]) {
    const calls = [
      [`${name}Sync`, () => library[`${name}Sync`](options())],
      [name, () => library[name](options())],
    ];
    if (library[`${name}Vjp`] !== undefined) {
      const plain = () => ({ ...options(), details: undefined });
      calls.push([`${name}VjpSync`, withGradients(name, 'Sync', plain)]);
      calls.push([`${name}Vjp`, withGradients(name, '', plain)]);
    }
    for (const [what, call] of calls) {
      await failEach(`${what} (${title})`, binding.failAllocation, call);
      await failEach(`${what} (${title}), new`, binding.failNew, call);
    }
  }
}
figure('faults: allocations that failed', injected);

// Threads that cannot start: the caller computes alone; a call that needs one says so.
library.setNumThreads(1);
await new Promise((resolve) => setTimeout(resolve, 50)); // surplus threads leave
library.setNumThreads(8);
binding.failThreads(1);
for (const name of names) {
  const { typical } = operations[name];
  const value = library[`${name}Sync`](typical());
  const { value: other, error } = await outcome(() => library[name](typical()));
  if (error !== undefined && error.code !== 'ERR_OUT_OF_MEMORY') fail(`${name}: ${error.stack}`);
  if (error === undefined && !isDeepStrictEqual(other, value)) fail(`${name}: threads that fail`);
}
binding.failThreads(0);
for (const name of names) {
  const { typical } = operations[name];
  const value = library[`${name}Sync`](typical());
  if (!isDeepStrictEqual(await library[name](typical()), value)) fail(`${name}: after the threads`);
}
figure('faults: operations without threads', names.length);
