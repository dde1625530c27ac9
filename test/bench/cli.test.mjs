// The commands as they are typed: what they print and write, and what they refuse.

import { spawnSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { writeSafetensors } from '../../dist/safetensors.js';
import { normals } from '../lib/support/data.mjs';
import { root } from '../lib/support/package.mjs';
import { run, start, temporaryFolder } from './support/cli.mjs';

const SMALL = ['--length', '96', '--heads', '2', '--dim', '16', '--rounds', '3', '--clusters', '8'];

function tensor(...shape) {
  return {
    shape,
    data: normals(
      shape.reduce((a, b) => a * b, 1),
      shape.length,
    ),
  };
}

describe('bench', () => {
  test('prints every speed beside its error, and writes the same as JSON and HTML', () => {
    const folder = temporaryFolder();
    const [json, report] = ['a.json', 'a.html'].map((name) => path.join(folder, name));
    const { status, stdout } = run(
      'bench',
      ...SMALL,
      '--threads',
      '1',
      '--json',
      json,
      '--report',
      report,
    );
    expect(status).toBe(0);
    for (const column of ['time', 'spread', 'speed-up', 'error', 'weights L1', 'recall']) {
      expect(stdout).toContain(column);
    }
    const { complete, machine, command, results } = JSON.parse(readFileSync(json, 'utf8'));
    expect(complete).toBe(true);
    expect(machine.processor).toEqual(expect.any(String));
    expect(command).toContain('--length 96');
    expect(results.map(({ case: { method } }) => method)).toEqual([
      'exact',
      'clustered',
      'improved',
      'centroid',
      'cast',
    ]);
    for (const { status: state, time, accuracy, flop, gflops, peak, share } of results) {
      expect(state).toBe('measured');
      expect(time.samples).toHaveLength(3);
      expect(time.lower <= time.median && time.median <= time.upper).toBe(true);
      expect(accuracy.rounding).toBeLessThan(1e-5);
      expect(gflops).toBeCloseTo(flop / time.median / 1e6, 2);
      expect(share).toBeCloseTo(gflops / peak, 4);
    }
    const [exact, clustered, improved, centroid] = results;
    expect(exact.accuracy.error).toBeLessThan(1e-5);
    expect(exact.speedup).toBe(1);
    expect(clustered.speedup).toBeCloseTo(exact.time.median / clustered.time.median, 3);
    // Proposition 2: row by row improved is never farther from exact.
    expect(improved.accuracy.weights).toBeLessThan(clustered.accuracy.weights);
    expect(centroid.accuracy.error).toBeUndefined();
    expect(readFileSync(report, 'utf8')).toMatch(/^<!doctype html>/);
    expect(readdirSync(folder).toSorted()).toEqual(['a.html', 'a.json']);
  });

  test('exact attention of long inputs is listed as skipped', () => {
    const { status, stdout } = run('bench', ...SMALL, '--exact-up-to', '95', '--methods', 'exact');
    expect(status).toBe(0);
    expect(stdout).toContain('exact: skipped, longer than --exact-up-to 95');
  });

  test('reads query, key and value of the user', () => {
    const folder = temporaryFolder();
    const file = path.join(folder, 'mine.safetensors');
    writeSafetensors(file, { q: tensor(2, 40, 8), k: tensor(2, 56, 8), v: tensor(2, 56, 12) });
    const json = path.join(folder, 'a.json');
    const { status, stdout } = run('bench', '--input', file, '--names', 'q,k,v', '--json', json,
      '--rounds', '3', '--clusters', '5'); // prettier-ignore
    expect(status).toBe(0);
    expect(stdout).toContain('B=1 H=2 L=40 S=56 D=8 E=12');
    expect(stdout).toContain('CAST is self-attention only');
    const { results } = JSON.parse(readFileSync(json, 'utf8'));
    expect(results[0].case.data).toBe('mine.safetensors');
    expect(results[0].accuracy.error).toBeLessThan(1e-5);
  });

  test.skipIf(process.platform !== 'linux')('finds the memory that a call takes', () => {
    const json = path.join(temporaryFolder(), 'a.json');
    const sizes = ['--length', '16384', '--heads', '1', '--cluster-size', '32'];
    run(
      'bench',
      ...sizes,
      '--methods',
      'cast',
      '--exact-up-to',
      '1',
      '--rounds',
      '3',
      '--json',
      json,
    );
    const { results } = JSON.parse(readFileSync(json, 'utf8'));
    // Every place in a cluster has a row of its own until the rows are combined. Some sandboxes let
    // nobody set the high-water mark back.
    expect(results[0].memory ?? Infinity).toBeGreaterThan(16384 * 64 * 4);
  });

  test('bfloat16 is checked with the operands it rounds', () => {
    const { status, stdout } = run('bench', ...SMALL, '--precision', 'bfloat16');
    expect(status).toBe(0);
    expect(stdout).toContain('bfloat16');
  });

  test('gradients are checked too', () => {
    const json = path.join(temporaryFolder(), 'a.json');
    const { status, stdout } = run('bench', ...SMALL, '--grad', '--json', json);
    expect(status).toBe(0);
    expect(stdout).toContain('forward and backward');
    const { results } = JSON.parse(readFileSync(json, 'utf8'));
    const byMethod = Object.fromEntries(results.map((one) => [one.case.method, one]));
    for (const { status: state, accuracy } of results) {
      expect(state).toBe('measured');
      expect(accuracy.rounding).toBeLessThan(1e-5);
    }
    expect(byMethod.exact.accuracy.gradientError).toBeLessThan(1e-5);
    expect(byMethod.improved.accuracy.gradientError).toBeGreaterThan(0.01);
    expect(byMethod.cast.accuracy.gradientError).toBeUndefined();
  });
});

/** Everything that a run leaves, also in the folder of temporary files. */
function ownFolder() {
  const folder = temporaryFolder();
  vi.stubEnv('TMPDIR', folder);
  return folder;
}

/** The command with standard streams of its own. */
const runOn = (stdio, ...parameters) =>
  spawnSync(process.execPath, [path.join(root, 'dist', 'cli.js'), ...parameters], {
    encoding: 'utf8',
    stdio,
  });

describe('an early end', () => {
  const TWO = ['--length', '64,96', ...SMALL.slice(2), '--methods', 'exact'];
  afterEach(() => vi.unstubAllEnvs());

  test.each(['SIGINT', 'SIGTERM', 'SIGHUP'])('%s leaves a valid recording', async (signal) => {
    const folder = ownFolder();
    const json = path.join(folder, 'a.json');
    const { child, output, ended, shows } = start('bench', '--length', '64,16384', '--heads', '1',
      '--dim', '32', '--methods', 'exact,clustered', '--rounds', '3', '--json', json); // prettier-ignore
    await shows(/N=64 /);
    child.kill(signal);
    expect(await ended).toEqual({ code: 130, signal: null });
    expect(output.text).toContain('Interrupted');
    const { complete, results } = JSON.parse(readFileSync(json, 'utf8'));
    expect(complete).toBe(false);
    expect(results.slice(0, 2).map(({ status }) => status)).toEqual(['measured', 'measured']);
    for (const { time } of results) expect(time.samples.length).toBeGreaterThan(0);
    expect(readdirSync(folder)).toEqual(['a.json']);
  });

  test('a reader that leaves ends the run quietly, its recording is kept', async () => {
    const folder = ownFolder();
    const json = path.join(folder, 'a.json');
    const { child, ended } = start('bench', ...TWO, '--json', json);
    child.stdout.destroy();
    const errors = [];
    child.stderr.on('data', (text) => errors.push(text));
    expect(await ended).toEqual({ code: 141, signal: null });
    expect(errors.join('').replaceAll(/^checking .*\n/gm, '')).toBe('');
    const { complete, results } = JSON.parse(readFileSync(json, 'utf8'));
    expect(complete).toBe(false);
    expect(results.map(({ case: { problem } }) => problem.keyLength)).toEqual([64]);
    expect(readdirSync(folder)).toEqual(['a.json']);
  });

  test('help that nobody reads is no error', async () => {
    const { child, ended } = start('bench', '--help');
    child.stdout.destroy();
    const errors = [];
    child.stderr.on('data', (text) => errors.push(text));
    expect(await ended).toEqual({ code: 141, signal: null });
    expect(errors).toEqual([]);
  });

  test.runIf(existsSync('/dev/full'))('a full disk is one line and exit code 1', () => {
    const folder = ownFolder();
    const full = openSync('/dev/full', 'w');
    for (const parameters of [['--version'], ['--help'], ['bench', ...TWO]]) {
      const { status, stderr } = runOn(['ignore', full, 'pipe'], ...parameters);
      const text = stderr.replaceAll(/^checking .*\n/gm, '');
      expect(text).toMatch(/^cluster-attention: cannot write the output: ENOSPC[^\n]*\n$/);
      expect(status).toBe(1);
    }
    expect(runOn(['ignore', 'pipe', full], 'bench', ...TWO).status).toBe(1);
    closeSync(full);
    expect(readdirSync(folder)).toEqual([]);
  });
});

test('control characters of names are escaped', () => {
  const folder = temporaryFolder();
  const file = path.join(folder, 'red \u001b[31m\nmine.safetensors');
  writeSafetensors(path.join(folder, 'mine.safetensors'), {
    'q\u001b[2J': tensor(1, 2, 20, 8),
    k: tensor(1, 2, 20, 8),
  });
  copyFileSync(path.join(folder, 'mine.safetensors'), file);
  const refused = run('bench', '--input', file);
  expect(refused.status).toBe(2);
  expect(refused.stderr).toContain('there are: q\\x1b[2J, k\n');
  expect(refused.stderr).not.toContain('\u001b');
  const named = run('bench', '--input', file, '--names', 'k,k,k', '--methods', 'exact', '--rounds',
    '3'); // prettier-ignore
  expect(named.stdout).toContain(', red \\x1b[31m\\x0amine.safetensors data\n');
});

/** Files that are wrong in every way, and a good one. */
function filledFolder() {
  const place = temporaryFolder();
  const at = (name) => path.join(place, name);
  writeFileSync(at('text.safetensors'), 'this is no safetensors file at all');
  writeSafetensors(at('good.safetensors'), {
    query: tensor(1, 2, 20, 8),
    key: tensor(1, 2, 20, 8),
    value: tensor(1, 2, 20, 8),
    short: tensor(1, 2, 19, 8),
    flat: tensor(320),
    none: tensor(1, 2, 0, 8),
    nan: { shape: [1, 2, 20, 8], data: new Float32Array(320).fill(NaN) },
  });
  writeFileSync(at('truncated.safetensors'), readFileSync(at('good.safetensors')).subarray(0, -9));
  return place;
}

const file = (name) => (place) => path.join(place, name);

describe('bad input: one line, exit code 2, no file', () => {
  const cases = [
    ['an unknown method', ['--methods', 'exact,magic'], /unknown --methods "magic"/],
    ['a method of every object', ['--methods', 'constructor'], /unknown --methods "constructor"/],
    ['an unknown option', ['--frobnicate'], /frobnicate/],
    ['a word too many', ['now'], /unexpected "now"/],
    ['length 0', ['--length', '0'], /--length expects a whole number/],
    ['half a token', ['--length', '10.5'], /--length expects a whole number/],
    ['a negative length', ['--length=-4'], /--length expects a whole number/],
    ['an empty list', ['--clusters', ''], /--clusters has an empty value/],
    ['impossible sizes', ['--length', '2000000000'], /impossible sizes/],
    ['too few rounds', ['--rounds', '1'], /--rounds expects/],
    ['two values for one', ['--heads', '2,4'], /--heads takes one value/],
    ['65 bits', ['--bits', '65'], /--bits expects a whole number from 1 to 64/],
    ['an unknown distribution', ['--distribution', 'cauchy'], /unknown --distribution "cauchy"/],
    ['an unknown device', ['--device', 'tpu'], /unknown --device "tpu"/],
    ['an unknown precision', ['--precision', 'float16'], /unknown --precision "float16"/],
    ['a missing file', ['--input', file('none.safetensors')], /cannot read .*none\.safetensors/],
    ['a folder', ['--input', (place) => place], /not a regular file/],
    ['no safetensors file', ['--input', file('text.safetensors')], /no safetensors file/],
    ['a truncated file', ['--input', file('truncated.safetensors')], /truncated/],
    ['an unknown tensor', ['--input', file('good.safetensors'), '--names', 'q,key,value'], /no tensor "q"; there are: query/],
    ['shapes that do not fit', ['--input', file('good.safetensors'), '--names', 'query,key,short'], /do not fit each other/],
    ['a tensor of rank 1', ['--input', file('good.safetensors'), '--names', 'flat,key,value'], /has shape \[320\]/],
    ['a tensor without rows', ['--input', file('good.safetensors'), '--names', 'query,none,none'], /hold nothing/],
    ['two names', ['--input', file('good.safetensors'), '--names', 'query,key'], /--names expects three/],
    ['queries beside a file', ['--input', file('good.safetensors'), '--queries', '5'], /no meaning beside --input/],
    ['a length beside a file', ['--input', file('good.safetensors'), '--length', '5'], /no meaning beside --input/],
    ['an unwritable path', ['--json', file('no/where/a.json')], /--json: cannot write/],
    ['a folder as report', ['--report', (place) => place], /--report: cannot write/],
  ]; // prettier-ignore

  test.each(cases)('%s', (_, parameters, message) => {
    const place = filledFolder();
    const before = readdirSync(place);
    const given = parameters.map((one) => (typeof one === 'function' ? one(place) : one));
    const json = given.includes('--json') ? [] : ['--json', path.join(place, 'out.json')];
    const { status, stdout, stderr } = run('bench', ...given, ...json);
    expect(stderr).toMatch(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
    expect(stdout).toBe('');
    expect(status).toBe(2);
    expect(readdirSync(place)).toEqual(before);
  });

  test('NaN in a tensor is named', () => {
    const place = filledFolder();
    const { status, stdout } = run('bench', '--input', path.join(place, 'good.safetensors'),
      '--names', 'query,key,nan', '--methods', 'exact'); // prettier-ignore
    expect(stdout).toMatch(/failed, .*tensor "nan" holds NaN at 0/);
    expect(status).toBe(1);
    expect(existsSync(path.join(place, 'out.json'))).toBe(false);
  });
});
