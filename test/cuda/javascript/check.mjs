// The package on a real GPU, by JavaScript: every operation and every gradient over DeviceTensors and
// over plain arrays against the CPU, and the promises of DeviceTensor. Ends in a table and a line of JSON; the exit code
// says whether all is well. Needs Node and the built package, nothing else:
//   node test/cuda/javascript/check.mjs [device]      default cuda:0

import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { names, operations } from '../../lib/support/operations.mjs';

const ca = createRequire(import.meta.url)('../../..');
const { DeviceTensor } = ca;
const device = process.argv[2] ?? 'cuda:0';

const { cuda, version } = ca.info();
if (!cuda.available) {
  console.error(`there is nothing to check: ${cuda.reason}`);
  process.exit(1);
}

/** Relative L2 distance that floats may have: sums run in another order than on the CPU, and steps pass
 *  it on (docs/gpu.md). */
const FLOAT32_BOUND = 2e-5;
const FLOAT32_BOUNDS = { centroidPool: 1e-4, centroidEncode: 2e-4 };
/** Of gradients; those of several steps pass the roundings of each on, backwards too. */
const GRADIENT_BOUND = 1e-4;
const GRADIENT_BOUNDS = { centroidPool: 5e-3, centroidEncode: 1e-3 };
const BFLOAT16_BOUND = 2 ** -6;
const PLAIN = new Set(['lengths', 'queryLengths', 'keyLengths']);
const STORED = new Set(['query', 'key', 'value', 'inputs', 'scores', 'a', 'b']);

const toDevice = (options, dtype) =>
  Object.fromEntries(
    Object.entries(options).map(([name, value]) => {
      if (!ArrayBuffer.isView(value) || PLAIN.has(name)) return [name, value];
      return [name, DeviceTensor.from(value, { device, ...(STORED.has(name) && { dtype }) })];
    }),
  );

const arraysOf = (result) => {
  const bare = ArrayBuffer.isView(result) || result instanceof DeviceTensor;
  const values = Object.entries(bare ? { output: result } : result);
  return values.map(([name, value]) => [
    name,
    value instanceof DeviceTensor ? value.toArraySync() : value,
  ]);
};

function dispose(...objects) {
  for (const object of objects) {
    for (const value of object instanceof DeviceTensor ? [object] : Object.values(object)) {
      if (value instanceof DeviceTensor) value.dispose();
    }
  }
}

/** What is wrong with an array, '' when nothing is: integers must be equal, floats near. */
function disagreement(name, actual, expected, bound) {
  if (actual.length !== expected.length) return `${name}: ${actual.length} elements`;
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; ++i) {
    if (Object.is(actual[i], expected[i])) {
      norm += Number.isFinite(Number(expected[i])) ? Number(expected[i]) ** 2 : 0;
      continue;
    }
    const exact = !(expected instanceof Float32Array || expected instanceof Float64Array);
    if (exact || !Number.isFinite(actual[i]) || !Number.isFinite(expected[i])) {
      return `${name}[${i}] is ${actual[i]}, not ${expected[i]}`;
    }
    error += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  const relative = norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm);
  return relative <= bound ? '' : `${name}: relative L2 ${relative.toExponential(2)} > ${bound}`;
}

/** The first fault among the arrays of a result. */
function compare(result, expected, bound) {
  const wanted = new Map(arraysOf(expected));
  const faults = arraysOf(result).map(([name, array]) =>
    disagreement(name, array, wanted.get(name), bound),
  );
  return faults.find(Boolean) ?? '';
}

const rows = [];
async function check(what, body) {
  const begin = process.hrtime.bigint();
  let said;
  try {
    said = (await body()) || 'ok';
  } catch (error) {
    const missing = error.code === 'ERR_UNSUPPORTED' && error.argument === 'device';
    said = missing ? 'no kernel' : `${error.code ?? error.name}: ${error.message}`;
  }
  rows.push({ what, said, milliseconds: Number(process.hrtime.bigint() - begin) / 1e6 });
}

for (const name of names) {
  for (const kind of ['minimal', 'typical']) {
    const { [kind]: make } = operations[name];
    const sync = ca[`${name}Sync`];
    const bound = FLOAT32_BOUNDS[name] ?? FLOAT32_BOUND;
    await check(`${name} ${kind}, plain arrays`, () =>
      compare(sync({ ...make(), device }), sync(make()), bound),
    );
    if (!Object.values(make()).some(ArrayBuffer.isView)) continue;
    await check(`${name} ${kind}, DeviceTensors`, async () => {
      const moved = toDevice(make(), 'float32');
      const result = await ca[name](moved);
      const fault = compare(result, sync(make()), bound);
      dispose(moved, result);
      return fault;
    });
  }
}

const upstream = (length) => Float32Array.from({ length }, (_, i) => Math.sin(7 * i + 1));

/** The gradients of a call, and their disagreement with those of the CPU. */
async function compareGradients(name, options, make, bound) {
  const cpu = ca[`${name}VjpSync`](make());
  const gradOutput = upstream(cpu.output.length);
  const state = await ca[`${name}Vjp`](options);
  const gradients = await state.backward(gradOutput);
  const fault = compare(gradients, cpu.backward(gradOutput), bound);
  state.dispose();
  dispose(gradients, state);
  return fault;
}

for (const name of names.filter((each) => ca[`${each}Vjp`])) {
  for (const kind of ['minimal', 'typical']) {
    const { [kind]: make } = operations[name];
    const bound = GRADIENT_BOUNDS[name] ?? GRADIENT_BOUND;
    await check(`gradients of ${name} ${kind}, plain arrays`, () =>
      compareGradients(name, { ...make(), device }, make, bound),
    );
    await check(`gradients of ${name} ${kind}, DeviceTensors`, async () => {
      const moved = toDevice(make(), 'float32');
      const fault = await compareGradients(name, moved, make, bound);
      dispose(moved);
      return fault;
    });
  }
}

await check('gradients of attention, bfloat16 storage and operands', async () => {
  const make = () => ({ ...operations.attention.typical(), precision: 'bfloat16' });
  const moved = toDevice(make(), 'bfloat16');
  const fault = await compareGradients('attention', moved, make, 2 * BFLOAT16_BOUND);
  dispose(moved);
  return fault;
});

await check('matmul adds to what out holds', () => {
  const make = operations.matmul.minimal;
  const { length } = ca.matmulSync(make());
  const more = { out: upstream(length), accumulate: true };
  const expected = ca.matmulSync({ ...make(), ...more, out: upstream(length) });
  const moved = toDevice({ ...make(), ...more }, 'float32');
  const fault = compare(ca.matmulSync(moved), expected, FLOAT32_BOUND);
  dispose(moved);
  return fault || compare(ca.matmulSync({ ...make(), ...more, device }), expected, FLOAT32_BOUND);
});

await check('attention, bfloat16 storage and operands', () => {
  const { typical } = operations.attention;
  const moved = toDevice(typical(), 'bfloat16');
  const precision = 'bfloat16';
  const result = ca.attentionSync({ ...moved, precision });
  const fault = compare(result, ca.attentionSync({ ...typical(), precision }), BFLOAT16_BOUND);
  dispose(moved, result);
  return fault;
});

await check('bits come back as they went', async () => {
  const array = Float32Array.from({ length: 3_000_001 }, (_, i) => Math.sin(i) * 1e3);
  const tensor = await DeviceTensor.fromAsync(array, { device });
  const fault = disagreement('array', await tensor.toArray(), array, 0);
  tensor.dispose();
  return fault;
});

await check('a NaN is found with its place', () => {
  const options = operations.attention.minimal();
  options.key[3] = NaN;
  try {
    ca.attentionSync({ ...options, device });
    return 'no error';
  } catch ({ code, argument, index }) {
    return code === 'ERR_NON_FINITE' && argument === 'key' && index === 3 ? '' : `${code}`;
  }
});

await check('the same bits again, also side by side', async () => {
  const moved = toDevice(operations.attention.typical(), 'float32');
  const results = await Promise.all(Array.from({ length: 8 }, () => ca.attention(moved)));
  const first = results[0];
  const fault = results.map((result) => compare(result, first, 0)).find(Boolean);
  dispose(moved, ...results);
  return fault;
});

await check('calls of different sizes side by side', async () => {
  const sizes = [8, 64, 128, 200].flatMap((headDim) =>
    [70, 700].map((queryLength) => ({ headDim, queryLength })),
  );
  const calls = sizes.map(({ headDim, queryLength }) => {
    const shape = { batch: 1, heads: 2, queryLength, headDim };
    const array = Float32Array.from({ length: 2 * queryLength * headDim }, (_, i) => Math.sin(i));
    return { query: array, key: array, value: array, shape, clusters: 5, topK: 9, device };
  });
  const expected = calls.map((options) => ca.improvedClusteredAttentionSync(options));
  const rounds = Array.from({ length: 40 }, () =>
    calls.map((options) => ca.improvedClusteredAttention(options)),
  );
  const results = await Promise.all(rounds.flat());
  return (
    results.map((result, i) => compare(result, expected[i % calls.length], 0)).find(Boolean) ?? ''
  );
});

/** What ends a program with calls in flight: its exit code is its own. */
const ENDS = {
  'process.exit()': 'process.exit(7)',
  'an error that nobody catches': 'throw new Error("enough")',
};
for (const [what, end] of Object.entries(ENDS)) {
  await check(`a program ends with calls in flight by ${what}`, () => {
    const script = `
      const ca = require(${JSON.stringify(createRequire(import.meta.url).resolve('../../..'))});
      const shape = { batch: 1, heads: 8, queryLength: 65536, headDim: 64 };
      const array = ca.DeviceTensor.from(new Float32Array(8 * 65536 * 64), { device: '${device}' });
      for (let i = 0; i < 6; ++i) ca.attention({ query: array, key: array, value: array, shape });
      setTimeout(() => { ${end} }, 50);
    `;
    const { status, signal } = spawnSync(process.execPath, ['-e', script], { timeout: 30_000 });
    const wanted = end.startsWith('throw') ? 1 : 7;
    return status === wanted ? '' : `ended with ${signal ?? status}`;
  });
}

const LENGTH = 16_384;
await check(`a long one off the main thread: attention, N=${LENGTH}`, async () => {
  const shape = { batch: 1, heads: 8, queryLength: LENGTH, headDim: 64 };
  const array = new Float32Array(8 * LENGTH * 64).map((_, i) => Math.sin(i));
  const options = toDevice({ query: array, key: array, value: array, shape }, 'bfloat16');
  let turns = 0;
  let done = false;
  const turn = () => {
    turns += 1;
    if (!done) setImmediate(turn);
  };
  turn();
  const result = await ca.attention({ ...options, precision: 'bfloat16' });
  done = true;
  dispose(options, result);
  return turns > 1 ? '' : 'the event loop stood still';
});

await check('too much memory is refused, and the next call works', () => {
  const { memory } = ca.info().cuda.devices[Number(device.split(':')[1] ?? 0)];
  const held = [];
  const array = new Float32Array(2 ** 28);
  try {
    for (let bytes = 0; bytes <= memory; bytes += array.byteLength) {
      held.push(DeviceTensor.from(array, { device }));
    }
    return 'no error';
  } catch (error) {
    if (error.code !== 'ERR_OUT_OF_MEMORY') throw error;
  } finally {
    dispose(...held);
  }
  return compare(
    ca.attentionSync({ ...operations.attention.minimal(), device }),
    ca.attentionSync(operations.attention.minimal()),
    FLOAT32_BOUND,
  );
});

const bad = rows.filter(({ said }) => said !== 'ok' && said !== 'no kernel');
for (const { what, said, milliseconds } of rows) {
  console.log(`${what.padEnd(58)} ${milliseconds.toFixed(1).padStart(9)} ms  ${said}`);
}
console.log(
  JSON.stringify({ version, cuda, device, checks: rows.length, failed: bad.length, rows }),
);
process.exitCode = bad.length === 0 ? 0 : 1;
