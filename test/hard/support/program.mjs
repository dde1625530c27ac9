// What the programs of this folder share: name=value arguments, figures as lines of JSON for
// scripts/hard-tests.cjs, and child processes, whose crash is a failure like any other.

import { spawn } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const given = Object.fromEntries(
  process.argv.slice(2).map((argument) => {
    const [name, ...value] = argument.split('=');
    return [name, value.join('=')];
  }),
);

export const text = (name, fallback = '') => given[name] ?? fallback;
export const number = (name, fallback) => (name in given ? Number(given[name]) : fallback);

/** One line of the table that `npm run test:hard` prints. */
export function figure(name, value) {
  console.log(JSON.stringify({ figure: name, value }));
}

/** Says what is wrong and lets the process fail at its end. */
export function fail(message) {
  console.log(`FAILED ${message}`);
  process.exitCode = 1;
}

/** Runs a program of this folder, or a script of the tests, to its end. */
export function runChild(file, parameters = {}, { timeout = 3_600_000, node = [] } = {}) {
  const list = Object.entries(parameters).map(([name, value]) => `${name}=${value}`);
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...node, fileURLToPath(file), ...list], {
      timeout,
      killSignal: 'SIGKILL',
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => (output += data));
    }
    child.on('close', (code, signal) => resolve({ code, signal, output }));
  });
}

/** Runs `body` on each entry, as many at once as there are processors. */
export async function inParallel(entries, body, width = availableParallelism()) {
  const queue = entries.entries();
  const results = [];
  const worker = async () => {
    for (const [index, entry] of queue) results[index] = await body(entry);
  };
  await Promise.all(Array.from({ length: width }, worker));
  return results;
}

/** The figures in the output of a child, summed by name. */
export function figuresOf(output, into = new Map()) {
  for (const line of output.split('\n')) {
    if (!line.startsWith('{"figure"')) continue;
    const { figure: name, value } = JSON.parse(line);
    into.set(name, typeof value === 'number' ? (into.get(name) ?? 0) + value : value);
  }
  return into;
}
