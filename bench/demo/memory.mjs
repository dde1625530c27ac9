// The extra memory of an operation: how far the resident memory of a fresh process rises above its
// level just before the call, while the call runs. Inputs and output are there, and touched, before
// the call, so they do not count; neither do the threads and code of a first, small call.
//
// On Linux the high-water mark of the process (VmHWM) is set back just before the call. Elsewhere
// it is the mark since the start, which can hide a rise, but not invent one.

import { execFile } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, readSync } from 'node:fs';
import { rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { shorten, WARM_UP_TOKENS } from './methods.mjs';

const SELF = fileURLToPath(import.meta.url);

/**
 * @param {string} operation name of an operation
 * @param {object} options its options
 * @param {number} outputLength elements of its output
 * @returns {Promise<number>} bytes
 */
export async function measureExtraMemory(operation, options, outputLength) {
  const folder = mkdtempSync(join(tmpdir(), 'cluster-attention-demo-'));
  try {
    const arrays = Object.entries(options).filter(([, value]) => value instanceof Float32Array);
    for (const [name, array] of arrays) writeFileSync(join(folder, name), array);
    const lengths = Object.fromEntries(arrays.map(([name, array]) => [name, array.length]));
    const others = Object.entries(options).filter(([, value]) => !(value instanceof Float32Array));
    const description = { operation, outputLength, lengths, options: Object.fromEntries(others) };
    writeFileSync(join(folder, 'call.json'), JSON.stringify(description));
    const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', SELF, folder]);
    return JSON.parse(stdout);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Reads straight into the array: a buffer in between would raise the high-water mark. */
function readArray(path, length) {
  const array = new Float32Array(length);
  const bytes = new Uint8Array(array.buffer);
  const file = openSync(path);
  let filled = 0;
  while (filled < bytes.length) {
    const read = readSync(file, bytes, filled, bytes.length - filled, null);
    if (read === 0) throw new Error(`${path} is too short`);
    filled += read;
  }
  closeSync(file);
  return array;
}

function resetHighWaterMark() {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Not Linux, or not allowed: the mark since the start of the process serves.
  }
}

function highWaterMark() {
  try {
    const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1'));
    return kibibytes * 1024;
  } catch {
    return process.resourceUsage().maxRSS * 1024;
  }
}

async function measureHere(folder) {
  const { default: api } = await import('cluster-attention');
  const call = JSON.parse(readFileSync(join(folder, 'call.json'), 'utf8'));
  const arrays = Object.entries(call.lengths).map(([name, length]) => [
    name,
    readArray(join(folder, name), length),
  ]);
  const options = { ...call.options, ...Object.fromEntries(arrays) };
  const out = new Float32Array(call.outputLength).fill(1);
  const run = api[`${call.operation}Sync`];
  run(shorten(options, WARM_UP_TOKENS));
  highWaterMark();
  globalThis.gc();
  resetHighWaterMark();
  const before = highWaterMark();
  run({ ...options, out });
  return Math.max(highWaterMark() - before, 0);
}

if (process.argv[1] === SELF) process.stdout.write(`${await measureHere(process.argv[2])}`);
