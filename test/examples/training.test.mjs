// The training example: its data, its gradients, and that a run can be repeated and resumed.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { writeSafetensors } from '../../dist/safetensors.js';
import { rowsAt, softmax } from '../lib/oracle/rows.mjs';
import { affine, encode, stateShapes } from './encoder-reference.mjs';

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

describe('pretrained weights', () => {
  const PREFIX = 'model.encoder.';

  /** A random state dict of PyTorch for an encoder of these sizes: name → data. */
  function stateOf(sizes) {
    const random = randomOf(9);
    return stateShapes(sizes).map(([name, shape]) => {
      const length = shape.reduce((product, axis) => product * axis, 1);
      const data = Float32Array.from({ length }, () => 0.3 * random.normal());
      return [name, { shape, data }];
    });
  }

  function fileOf(tensors, prefix = PREFIX) {
    const path = join(mkdtempSync(join(tmpdir(), 'training-')), 'pretrained.safetensors');
    writeSafetensors(path, new Map(tensors.map(([name, tensor]) => [prefix + name, tensor])));
    return path;
  }

  const snapshot = (model) =>
    Array.from(model.parameters.all, ([name, { value }]) => [name, Array.from(value)]);

  test('give what an encoder of PyTorch computes from the same state dict', () => {
    const state = stateOf(TINY);
    const question = { vocabulary: 5, classes: 4, length: 6, perToken: true };
    const model = new (load('model').Model)('exact', question, TINY, randomOf(1));
    load('pretrained').loadPretrained(fileOf(state), PREFIX, model.parameters);
    const tokens = Int32Array.of(3, 1, 0, 4, 2, 1, 2, 2, 0, 1, 3, 4);
    const targets = new Int32Array(12);
    const { gradient } = model.run({ tokens, targets }, false);

    const own = (name) => model.parameters.all.get(name).value;
    const data = new Map(state.map(([name, tensor]) => [name, tensor.data]));
    for (let b = 0; b < 2; ++b) {
      const embedded = Array.from({ length: 6 }, (_, l) => {
        const [token] = rowsAt(own('tokens.weight'), tokens[6 * b + l], 1, TINY.dim);
        return token.map((x, d) => x + own('positions.weight')[l * TINY.dim + d]);
      });
      const encoded = encode(data, TINY, embedded);
      const logits = affine(encoded, own('classifier.weight'), own('classifier.bias'));
      // The model shows its outputs as the gradient of the mean of −log softmax.
      const wanted = logits.flatMap((row) =>
        Array.from(softmax(row), (share, c) => (share - (c === 0 ? 1 : 0)) / 12),
      );
      wanted.forEach((x, i) => expect(gradient[24 * b + i]).toBeCloseTo(x, 6));
    }
  });

  test.each(KINDS)('fill the encoder under %s attention, and leave the rest', (kind) => {
    const state = stateOf(TINY);
    const model = modelOf('copy', kind, 16);
    const before = new Map(snapshot(model));
    const decoder = [['other.layers.0.linear1.bias', { shape: [1], data: Float32Array.of(7) }]];
    const file = fileOf([
      ...state,
      ['mask', { shape: [0], data: new Float32Array(0) }],
      ...decoder,
    ]);
    load('pretrained').loadPretrained(file, PREFIX, model.parameters);
    const wanted = new Map(state.map(([name, { data }]) => [name, Array.from(data)]));
    expect(new Map(snapshot(model))).toEqual(new Map([...before, ...wanted]));
  });

  test('are also those of a run here, embeddings and classifier included', () => {
    const trained = modelOf('copy', 'exact', 16);
    const { AdamW } = load('parameters');
    const file = join(mkdtempSync(join(tmpdir(), 'training-')), 'exact.safetensors');
    const save = load('checkpoint').saveCheckpoint;
    save(file, trained.parameters, new AdamW(trained.parameters), {}, []);
    const question = load('trainer').TASKS.copy.question(16);
    const model = new (load('model').Model)('clustered', question, TINY, randomOf(2));
    load('pretrained').loadPretrained(file, '', model.parameters);
    expect(snapshot(model)).toEqual(snapshot(trained));
  });

  const bias = 'layers.1.norm2.bias';
  test.each([
    [
      'a missing tensor',
      (state) => state.filter(([name]) => name !== bias),
      `no tensor "${PREFIX}${bias}"`,
    ],
    [
      'another shape',
      (state) =>
        state.map(([name, tensor]) => [
          name,
          name === bias ? { shape: [2, 4], data: tensor.data } : tensor,
        ]),
      `${PREFIX}${bias} has the shape (2,4): expected (8)`,
    ],
    [
      'a layer more',
      () => stateOf({ ...TINY, layers: 3 }),
      'the encoder has no parameter for model.encoder.layers.2.',
    ],
    ['fewer layers', () => stateOf({ ...TINY, layers: 1 }), 'no tensor "model.encoder.layers.1.'],
    [
      'another width',
      () => stateOf({ ...TINY, hidden: 13 }),
      'linear1.weight has the shape (13,8): expected (12,8)',
    ],
    [
      'another prefix',
      (state) => state.map(([name, tensor]) => [`x.${name}`, tensor]),
      'no tensor "model.encoder.layers.0.',
    ],
  ])('are refused with %s, before anything changes', (_, change, message) => {
    const model = modelOf('copy', 'exact', 16);
    const before = snapshot(model);
    const file = fileOf(change(stateOf(TINY)));
    const { loadPretrained } = load('pretrained');
    expect(() => loadPretrained(file, PREFIX, model.parameters)).toThrow(message);
    expect(snapshot(model)).toEqual(before);
  });

  test('are an option of the program, and of the run that it resumes', () => {
    const output = mkdtempSync(join(tmpdir(), 'training-'));
    const file = fileOf(stateOf({ dim: 8, hidden: 8, layers: 2 }));
    const args = [...small, '--steps', '2', '--output', output];
    const pretrained = ['--pretrained', file, '--prefix', PREFIX];
    expect(program(...args, ...pretrained).status).toBe(0);
    expect(program(...args, ...pretrained, '--resume').status).toBe(0);
    expect(program(...args, '--resume').stderr).toContain('is of another run');
    const { status, stderr } = program(...args, '--pretrained', file);
    expect(status).toBe(1);
    expect(stderr).toContain('no tensor "layers.0.norm1.weight"');
    const own = join(output, 'copy-16-improved-clustered.safetensors');
    expect(program(...args, '--pretrained', own).stderr).toContain('the run would overwrite');
  });
});

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
    [['--prefix', 'encoder.'], '--prefix is of the names in the file of --pretrained'],
    [['--fast'], "'--fast'"],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = program(...args);
    expect(status).toBe(2);
    expect(stderr).toContain(message);
    expect(stderr.trim().split('\n').length).toBe(1);
  });
});

test.each(['--help', '-h'])('%s lists every option, and so does docs/training.md', (flag) => {
  const { status, stdout, stderr } = program(flag);
  expect([status, stderr]).toEqual([0, '']);
  const names = stdout.match(/--[a-z-]+/g).filter((name) => name !== '--help');
  expect(names).toEqual(expect.arrayContaining(['--batch', '--seed', '--learning-rate']));
  const documented = readFileSync(join(root, 'docs', 'training.md'), 'utf8');
  for (const name of names) expect(documented).toContain(`\`${name}\``);
});
