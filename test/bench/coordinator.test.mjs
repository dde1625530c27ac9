// The coordinator with processes of all kinds: patient ones, wrong ones, and such that die.

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { Coordinator } from '../../dist/bench/coordinator.js';
import { METHODS } from '../../dist/bench/methods.js';
import { prepareSubject } from '../../dist/bench/subject.js';
import { writeSafetensors } from '../../dist/safetensors.js';
import { normals } from '../lib/support/data.mjs';
import { temporaryFolder } from './support/cli.mjs';
import { result } from './support/recording.mjs';

const SETTINGS = { rounds: 4, budget: 10, rows: 8, recallKeys: 4, seed: 0 };
const problem = {
  batch: 1,
  heads: 1,
  queryLength: 12,
  keyLength: 12,
  headDim: 4,
  valueDim: 4,
};

/** A process that answers the task with `reply`, and samples as `sample` says. */
function fake(reply, sample = '({ milliseconds: 2 })') {
  const script = `
    const lines = require('node:readline').createInterface({ input: process.stdin });
    let samples = -1;
    lines.on('line', (line) => {
      console.log('a library says hello');
      const task = JSON.parse(line);
      const answer = ++samples === 0 ? (${reply}) : (${sample});
      console.log(JSON.stringify(answer));
    });`;
  return [process.execPath, '-e', script];
}

const READY = "{ status: 'ready', repeats: 1, accuracy: { rows: 1, rounding: 0 }, flop: 4e6 }";

async function run(commands, settings = SETTINGS, onProgress = () => {}, drawn = problem) {
  const { case: one } = result(1);
  const entries = commands.map((command, i) => ({
    case: { ...one, method: `m${i}`, problem },
    command,
  }));
  const groups = [{ problem: drawn, source: 'gaussian', entries }];
  const reported = [];
  const coordinator = new Coordinator(groups, settings, 'command', {
    progress: (share, what) => onProgress(coordinator, share, what),
    results: (results) => reported.push(...results),
  });
  const recording = await coordinator.run();
  expect(recording.results).toEqual(reported);
  return recording;
}

describe('the coordinator', () => {
  test('samples in turns', async () => {
    const log = path.join(temporaryFolder(), 'log');
    const note = (name) =>
      `(require('node:fs').appendFileSync(${JSON.stringify(log)}, '${name}'), { milliseconds: 2, peak: 10 })`;
    const { complete, results } = await run(['a', 'b', 'c'].map((name) => fake(READY, note(name))));
    expect(readFileSync(log, 'utf8')).toBe('abcabcabcabc');
    expect(complete).toBe(true);
    for (const { status, time, gflops, peak, share } of results) {
      expect(status).toBe('measured');
      expect(time).toEqual({ median: 2, lower: 2, upper: 2, samples: [2, 2, 2, 2], repeats: 1 });
      expect([gflops, peak, share]).toEqual([2, 10, 0.2]);
    }
  });

  test('a seed other than 0 belongs to the case', async () => {
    const [plain, other] = [
      await run([fake(READY)]),
      await run([fake(READY)], { ...SETTINGS, seed: 7 }),
    ];
    expect(plain.results[0].case.seed).toBeUndefined();
    expect(other.results[0].case.seed).toBe(7);
  });

  test('takes median and quartiles of the samples', async () => {
    const { results } = await run([fake(READY, '({ milliseconds: [9, 1, 5, 3][samples - 1] })')]);
    expect(results[0].time).toMatchObject({ median: 4, lower: 2.5, upper: 6 });
  });

  test('a slow case stops after three samples when its budget is spent', async () => {
    const slow = `(Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60), { milliseconds: 60 })`;
    const settings = { ...SETTINGS, rounds: 9, budget: 0.1 };
    const { results } = await run([fake(READY, slow), fake(READY)], settings);
    expect(results.map(({ time }) => time.samples.length)).toEqual([3, 9]);
  });

  test('a wrong result has no time, a missing peer a reason, and the others go on', async () => {
    const wrong = "{ status: 'wrong', reason: 'off by one', accuracy: { rows: 1, rounding: 0.5 } }";
    const missing = "{ status: 'missing', reason: 'not there' }";
    const { results } = await run([fake(wrong), fake(missing), fake(READY)]);
    expect(results.map(({ status }) => status)).toEqual(['wrong', 'missing', 'measured']);
    expect(results[0]).toMatchObject({ reason: 'off by one', accuracy: { rounding: 0.5 } });
    expect(results[0].time).toBeUndefined();
    expect(results[1].reason).toBe('not there');
  });

  test('processes that die or do not start are failures of their own', async () => {
    const dies = "(console.error('out of luck'), process.exit(3))";
    const { results } = await run([
      fake(dies),
      fake(READY, `samples === 2 ? process.kill(process.pid, 'SIGKILL') : { milliseconds: 1 }`),
      ['/no/such/program'],
      fake(READY),
    ]);
    expect(results.map(({ status }) => status)).toEqual(['failed', 'failed', 'failed', 'measured']);
    expect(results[0].reason).toBe('the process ended (code 3): out of luck');
    expect(results[1].reason).toBe('the process ended (SIGKILL)');
    expect(results[2].reason).toMatch(/ENOENT/);
  });

  test('an interruption keeps what has samples', async () => {
    const hangs = fake(READY, 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)');
    const { complete, results } = await run(
      [fake(READY), hangs],
      SETTINGS,
      (coordinator, _, what) => {
        if (what.startsWith('m1')) setTimeout(() => coordinator.interrupt(), 50);
      },
    );
    expect(complete).toBe(false);
    expect(results.map(({ case: { method } }) => method)).toEqual(['m0']);
    expect(results[0].time.samples).toEqual([2]);
  });

  test('an interruption ends the drawing of inputs too', async () => {
    const seen = [];
    const { complete, results } = await run([fake(READY)], SETTINGS, (coordinator, _, what) => {
      seen.push(what);
      queueMicrotask(() => coordinator.interrupt());
    });
    expect(seen).toEqual(['drawing gaussian inputs, N=12']);
    expect({ complete, results }).toEqual({ complete: false, results: [] });
  });

  test('inputs that cannot be drawn are an error', async () => {
    vi.stubEnv('TMPDIR', path.join(temporaryFolder(), 'a-folder-that-is-not-there'));
    await expect(run([fake(READY)])).rejects.toThrow('ENOENT');
    vi.unstubAllEnvs();
    const huge = { ...problem, batch: 2 ** 40 };
    await expect(run([fake(READY)], SETTINGS, () => {}, huge)).rejects.toThrow(
      /^cannot draw the inputs: .*length/,
    );
  });

  test('the inputs are in a folder that is gone afterwards', async () => {
    const log = path.join(temporaryFolder(), 'log');
    const note = `(require('node:fs').writeFileSync(${JSON.stringify(log)}, task.input.path), ${READY})`;
    await run([fake(note)]);
    const inputs = readFileSync(log, 'utf8');
    expect(inputs).toMatch(/inputs\.safetensors$/);
    expect(existsSync(path.dirname(inputs))).toBe(false);
  });
});

const tensor = (seed) => ({ shape: [1, 1, 12, 4], data: normals(48, seed) });

/** A task on inputs in this folder. */
const taskIn = (folder, method, parameters = {}) => {
  const input = { path: path.join(folder, 'a.safetensors'), names: ['q', 'k', 'v'] };
  writeSafetensors(input.path, { q: tensor(1), k: tensor(2), v: tensor(3) });
  const { case: one } = result(1, { method, parameters });
  return { case: { ...one, problem }, input, rows: 8, recallKeys: 4, seed: 0 };
};

describe('a case of this package', () => {
  test('is ready when its result is right', () => {
    const { reply, run: call } = prepareSubject(taskIn(temporaryFolder(), 'exact'));
    expect(reply).toMatchObject({ status: 'ready', accuracy: { rows: 8, recall: 1 } });
    expect(call().output).toHaveLength(48);
  });

  test('is wrong, and not timed, when its result is not what the definition says', () => {
    const { define } = METHODS.exact;
    METHODS.exact.define = (...given) => {
      const rows = define(...given);
      return { ...rows, weights: (row) => rows.weights(row).map((weight) => 1.001 * weight) };
    };
    try {
      const { reply } = prepareSubject(taskIn(temporaryFolder(), 'exact'));
      expect(reply.status).toBe('wrong');
      expect(reply.reason).toMatch(/^the result is off by 1\.0e-3 from the definition$/);
      expect(reply.repeats).toBeUndefined();
    } finally {
      METHODS.exact.define = define;
    }
  });
});
