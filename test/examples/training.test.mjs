// The training example: its data, its gradients, and that a run can be repeated and resumed.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const require = createRequire(import.meta.url);
const KINDS = ['exact', 'clustered', 'improved-clustered', 'cast', 'centroid'];
const TINY = { dim: 8, heads: 2, hidden: 12, layers: 2 };

let load;
beforeAll(() => {
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', 'examples/training'], {
    cwd: root,
    encoding: 'utf8',
  });
  expect(stdout).toBe('');
  expect(status).toBe(0);
  load = (name) => require(join(root, 'build', 'training', `${name}.js`));
});

/** A seeded generator, from the example itself. */
const randomOf = (seed, stream = 0) => new (load('random').Random)(seed, stream);

function modelOf(task, kind, length) {
  const question = load('trainer').TASKS[task].question(length);
  return new (load('model').Model)(kind, question, TINY, randomOf(1, 5));
}

describe('tasks', () => {
  test('copy: what is hidden stands in the other copy', () => {
    const { tokens, targets } = load('tasks/copy').copyBatch(50, 32, randomOf(3));
    let asked = 0;
    targets.forEach((target, i) => {
      if (target < 0) return;
      ++asked;
      const other = i % 32 < 16 ? i + 16 : i - 16;
      expect(tokens[i]).toBe(11);
      expect(tokens[other]).toBe(target);
    });
    expect(asked / tokens.length).toBeCloseTo(0.2, 1);
  });

  /** Reads an expression on a stack, unlike the generator, which builds a tree. */
  function valueOf(tokens) {
    const stack = [];
    for (const token of tokens) {
      if (token !== 14) {
        stack.push(token);
        continue;
      }
      const values = [];
      while (stack.at(-1) < 10) values.push(stack.pop());
      const operator = stack.pop() - 10;
      values.sort((a, b) => a - b);
      const half = Math.floor(values.length / 2);
      const middle = values.length % 2 ? values[half] : (values[half - 1] + values[half]) >> 1;
      const sum = values.reduce((total, value) => total + value);
      stack.push([values.at(-1), values[0], middle, sum % 10][operator]);
    }
    expect(stack.length).toBe(1);
    return stack[0];
  }

  test('listops: the target is the value of the expression', () => {
    const { tokens, targets, lengths } = load('tasks/list-ops').listOpsBatch(200, 64, randomOf(4));
    const operators = new Set();
    lengths.forEach((length, b) => {
      const expression = tokens.subarray(b * 64, b * 64 + length);
      for (const token of expression) operators.add(token);
      expect(valueOf(expression)).toBe(targets[b]);
      expect(new Set(tokens.subarray(b * 64 + length, (b + 1) * 64)).size).toBeLessThan(2);
    });
    expect(operators.size).toBe(15);
  });
});

describe.each(['copy', 'listops'])('%s', (task) => {
  test('gradients agree with differences of the loss', () => {
    const model = modelOf(task, 'exact', 16);
    const batch = load('trainer').TASKS[task].batch(3, 16, randomOf(2, 7));
    model.run(batch, true);
    const step = 3e-3;
    for (const [name, { value, gradient }] of model.parameters.all) {
      // One of each third: the projections to query, key and value are one parameter.
      for (const share of [0.2, 0.5, 0.8]) {
        const i = Math.floor(share * value.length);
        const old = value[i];
        value[i] = old + step;
        const above = model.run(batch, false).loss;
        value[i] = old - step;
        const below = model.run(batch, false).loss;
        value[i] = old;
        expect(Math.abs((above - below) / (2 * step) - gradient[i]), name).toBeLessThan(1e-3);
      }
    }
  });

  test.each(KINDS)('%s attention learns a batch by heart', (kind) => {
    const model = modelOf(task, kind, 16);
    const optimiser = new (load('parameters').AdamW)(model.parameters);
    const batch = load('trainer').TASKS[task].batch(2, 16, randomOf(2, 7));
    const before = model.run(batch, false).loss;
    for (let i = 0; i < 150; ++i) {
      model.run(batch, true);
      optimiser.update(0.01);
    }
    const after = model.run(batch, false);
    expect(after.loss).toBeLessThan(0.2 * before);
    expect(after.correct).toBe(after.asked);
  });
});

const program = (...args) => {
  const script = join(root, 'build', 'training', 'train.js');
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], {
    cwd: root,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
};
const small = ['--length', '16', '--dim', '8', '--heads', '2', '--hidden', '8', '--batch', '2'];

describe('program', () => {
  test('gives the same weights again, also when it is resumed half-way', () => {
    const { train } = load('trainer');
    const folder = mkdtempSync(join(tmpdir(), 'training-'));
    const options = { ...TINY, task: 'copy', attention: 'cast', length: 16, batch: 2, seed: 3 };
    const run = (file, steps, stop, resume) => {
      const checkpoint = join(folder, file);
      const settings = { ...options, learningRate: 0.01, steps, checkpoint, resume };
      let done = 0;
      try {
        train(settings, (step) => {
          done = step;
          if (step === stop) throw new Error('cut off');
        });
      } catch (error) {
        expect(error.message).toBe('cut off');
      }
      expect(done).toBe(stop ?? steps);
      return checkpoint;
    };
    const whole = readFileSync(run('whole.safetensors', 250, undefined, false));
    run('parts.safetensors', 250, 230, false); // the last save is that of step 200
    const parts = readFileSync(run('parts.safetensors', 250, undefined, true));
    expect(Buffer.compare(whole, parts)).toBe(0);
    const other = { ...options, seed: 4, learningRate: 0.01, steps: 250, resume: true };
    const file = join(folder, 'parts.safetensors');
    expect(() => train({ ...other, checkpoint: file }, () => {})).toThrow('is of another run');
  });

  test('ends with a table also when a resumed run has no step left', () => {
    const folder = mkdtempSync(join(tmpdir(), 'training-'));
    const args = [...small, '--steps', '2', '--output', folder];
    expect(program(...args).status).toBe(0);
    const { status, stdout } = program(...args, '--resume');
    expect(status).toBe(0);
    expect(stdout).toMatch(/improved-clustered +\d+\.\d\d % +\d+\.\d{4} +–/);
  });

  test('ends with a table and a page', () => {
    const folder = mkdtempSync(join(tmpdir(), 'training-'));
    const args = [...small, '--task', 'listops', '--steps', '30', '--output', folder];
    const { status, stdout } = program(...args, '--attention', 'all');
    expect(status).toBe(0);
    const rows = stdout.split('\n').filter((line) => / \d+\.\d\d % /.test(line));
    expect(rows.map((row) => row.split(' ')[0])).toEqual(KINDS);
    const page = readFileSync(join(folder, 'listops-16.html'), 'utf8');
    expect(page).toContain('<td>improved-clustered</td>');
    expect(page.length).toBeGreaterThan(100_000); // with the charting library in it
  });

  test.each([
    [['--task', 'sort'], '--task must be copy or listops'],
    [['--attention', 'none'], '--attention must be exact, clustered'],
    [['--length', '15'], '--length must be even'],
    [['--heads', '3'], 'multiple of --heads'],
    [['--steps', '1e99'], '--steps must be an integer'],
    [['--learning-rate', 'high'], '--learning-rate must be a positive number'],
    [['--fast'], "'--fast'"],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = program(...args);
    expect(status).toBe(2);
    expect(stderr).toContain(message);
    expect(stderr.trim().split('\n').length).toBe(1);
  });
});
