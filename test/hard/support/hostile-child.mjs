// The child process of hostile-arguments.mjs: attacks some functions, in this process.

import { openSync, writeSync } from 'node:fs';
import * as fc from 'fast-check';
import { fail, figure, number, text } from './program.mjs';

/** No case needs more than this; what asks for more is told that there is no memory. */
const LIMIT = 1 << 26;

/** Bytes of the arrays that the package allocates; the test's own arrays use the real classes. */
const allocated = { bytes: 0 };
for (const name of ['Float32Array', 'Float64Array', 'Int32Array', 'BigUint64Array']) {
  globalThis[name] = new Proxy(globalThis[name], {
    construct(Class, parameters, target) {
      const [length] = parameters;
      if (typeof length === 'number') {
        if (length * Class.BYTES_PER_ELEMENT > LIMIT)
          throw new RangeError('no memory for the test');
        allocated.bytes += length * Class.BYTES_PER_ELEMENT;
      }
      return Reflect.construct(Class, parameters, target);
    },
  });
}

const { allFunctions, binding } = await import('./functions.mjs');
const { applyAttack, attacks, BAD_SIZES, errorFault, OWN_ERROR } = await import('./attacks.mjs');

/** Whether the native code was reached, that is: whether lib/ found nothing wrong. */
const native = { reached: false };
for (const [name, original] of Object.entries(binding)) {
  binding[name] = (request) => {
    native.reached = true;
    return original(request);
  };
}

const functions = await allFunctions();
const progress = text('progress') ? openSync(text('progress'), 'w') : undefined;
let latest = '';
const note = (name, index) => {
  latest = `function=${name} case=${index}`;
  if (progress !== undefined) writeSync(progress, `${name} ${index}`.padEnd(100), 0);
};

/** Makes the call and judges what came of it. */
async function attempt(target, list) {
  const call = await target.make();
  const fault = await judge(target, call, list);
  call.end?.();
  return fault;
}

async function judge(target, call, list) {
  const attack = applyAttack(call, list, target.known);
  const { options } = attack;
  allocated.bytes = 0;
  native.reached = false;
  let error;
  let result;
  try {
    result = attack.during(() => call.call(options));
    if (!target.sync && !(result instanceof Promise)) return 'no promise was returned';
  } catch (thrown) {
    if (!target.sync && !target.native) return `threw instead of rejecting: ${thrown}`;
    error = thrown;
  }
  const { bytes } = allocated;
  const { reached } = native;
  try {
    await result;
  } catch (rejected) {
    error = rejected;
  }
  if (error === undefined) return undefined;
  if (engineRefused(list, error)) return undefined;
  if (!reached && bytes > allowance(call, list) && error.code !== 'ERR_OUT_OF_MEMORY') {
    return `allocated ${bytes} bytes before it found out: ${error.message}`;
  }
  return errorFault(error);
}

/** A revoked Proxy as options makes the language itself throw; so do getters of hostile objects. */
function engineRefused(list, error) {
  return (
    error instanceof TypeError &&
    error.code === undefined &&
    list.some(({ kind, how }) => kind === 'wrap' || how === 'revoked')
  );
}

/** Copies of arrays that are what they should be may be made before the next one is looked at. */
function allowance(call, list) {
  const given = list.reduce((sum, { value }) => sum + (value?.byteLength ?? 0), call.bytes);
  return 4 * given + 1024;
}

async function attackAtRandom(target, cases) {
  const { arrays, tensors = {}, end } = await target.make();
  end?.();
  const arbitrary = attacks(target, Object.keys(arrays), Object.keys(tensors));
  const single = text('case');
  if (single.startsWith('pair')) return;
  let index = single ? Number(single) : 0;
  const property = fc.asyncProperty(arbitrary, async (list) => {
    note(target.name, index++);
    const fault = await attempt(target, list);
    if (fault !== undefined) throw new Error(`case=${index - 1}: ${fault}`);
  });
  const details = await fc.check(property, {
    numRuns: single ? 1 : cases,
    seed: number('seed', 1),
    path: single || undefined,
    endOnFailure: true,
    ignoreEqualValues: false,
  });
  figure('hostile arguments: random cases', details.numRuns);
  if (details.failed) {
    const { errorInstance, counterexample } = details;
    fail(`function=${target.name} seed=${details.seed} ${errorInstance?.message}
  attack: ${fc.stringify(counterexample?.[0])}`);
  }
}

/** All pairs of sizes with all pairs of bad values. */
function* badPairs({ known }) {
  const sizes = Object.keys(known).filter(
    (path) => known[path].kind === 'size' && !known[path].slow,
  );
  for (const [i, first] of sizes.entries()) {
    for (const second of sizes.slice(i + 1)) {
      for (const a of BAD_SIZES) {
        for (const b of BAD_SIZES) {
          yield [
            { kind: 'set', path: first, value: a },
            { kind: 'set', path: second, value: b },
          ];
        }
      }
    }
  }
}

async function attackByPairs(target, wanted) {
  const pairs = Array.from(badPairs(target));
  const stride = wanted === 'all' ? 1 : Math.max(1, Math.floor(pairs.length / Number(wanted)));
  let count = 0;
  for (let i = 0; i < pairs.length; i += stride) {
    note(target.name, `pair${i}`);
    const fault = await attempt(target, pairs[i]);
    count += 1;
    if (fault !== undefined) {
      fail(`function=${target.name} case=pair${i} ${fc.stringify(pairs[i])}: ${fault}`);
      break;
    }
  }
  figure('hostile arguments: pairs of bad dimensions', count);
}

if (text('list')) {
  console.log(JSON.stringify(functions.map(({ name }) => name)));
} else {
  const wanted = new Set(text('functions').split(','));
  process.on('uncaughtException', (error) => {
    fail(`${latest}: an exception that nobody could catch: ${error?.stack}`);
    process.exit();
  });
  process.on('unhandledRejection', (error) => fail(`a promise nobody holds: ${error?.stack}`));
  for (const target of functions) {
    if (!wanted.has(target.name)) continue;
    await attackAtRandom(target, number('cases', 60));
    const pairs = text('pairs', '300');
    if (pairs !== '0' && (!text('case') || text('case').startsWith('pair'))) {
      await attackByPairs(target, text('case') ? 'all' : pairs);
    }
  }
  if (OWN_ERROR.message !== 'of the caller') fail('the error of the caller was changed');
}
