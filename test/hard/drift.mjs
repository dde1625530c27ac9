// Resident memory over many calls of each operation, each in a process of its own.
//   node test/hard/drift.mjs [calls=300] [operation=name]

import { createRequire } from 'node:module';
import { names, operations } from '../lib/support/operations.mjs';
import { fail, figure, inParallel, number, runChild, text } from './support/program.mjs';

const SELF = new URL(import.meta.url);
/**
 * The second flag holds the engine's young generation at one size: left alone it grows by megabytes
 * whenever many objects survive a collection, whoever made them, and hides what the package does.
 */
const FLAGS = ['--expose-gc', '--max-semi-space-size=1'];
/** Until the engine has compiled what runs often, and allocators have what they keep. */
const WARM_UP = 3000;
/** In MiB; below some thousand calls the engine's own growth is all there is to see. */
const MOST = 1;
const ENOUGH = 5000;

const calls = number('calls', 300);

/** Calls of all forms of an operation. */
async function callAgain(library, name, count) {
  const { minimal } = operations[name];
  for (let i = 0; i < count; ++i) {
    const options = minimal();
    library[`${name}Sync`](options);
    if (i % 2 === 0) await library[name](options);
    if (i % 4 === 0 && library[`${name}VjpSync`] !== undefined) {
      library[`${name}VjpSync`](options).dispose();
    }
    if (i % 256 === 0) globalThis.gc();
  }
}

/** The least of some readings in MiB: what a collection frees goes back in its own time. */
async function resident(library, name) {
  const readings = [];
  for (let i = 0; i < 5; ++i) {
    await callAgain(library, name, 20);
    for (let turn = 0; turn < 4; ++turn) globalThis.gc();
    readings.push(process.memoryUsage.rss() / 2 ** 20);
  }
  return Math.min(...readings);
}

async function measure(name) {
  const library = createRequire(import.meta.url)('../..');
  await callAgain(library, name, Math.min(calls, WARM_UP));
  const before = await resident(library, name);
  await callAgain(library, name, calls);
  const drift = (await resident(library, name)) - before;
  if (calls >= ENOUGH && drift >= MOST) fail(`${name}: grew by ${drift.toFixed(2)} MiB`);
  console.log(`drift ${drift.toFixed(2)}`);
}

async function main() {
  const drifts = await inParallel(names, async (name) => {
    const { code, signal, output } = await runChild(
      SELF,
      { operation: name, calls },
      { node: FLAGS },
    );
    if (code !== 0) fail(`drift of ${name}: ${signal ?? code}\n${output}`);
    return Number(/^drift (.*)$/m.exec(output)?.[1]);
  });
  figure('drift: calls of each operation', calls);
  figure('drift: worst of resident memory, MiB', Math.max(...drifts));
}

await (text('operation') ? measure(text('operation')) : main());
