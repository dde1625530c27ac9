/**
 * Trains a small transformer encoder with one of the package's attention kinds, or with all of them:
 *   npm run train -- --task copy --attention improved-clustered [--length 64] [--steps 600]
 *   npm run train -- --task listops --attention all --length 256 --resume
 *   npm run train -- --attention clustered --pretrained weights.safetensors [--prefix encoder.]
 * Ends with a table of all runs of that task and length, and a page with their learning curves.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { SingleBar } from 'cli-progress';
import { KINDS, type Kind } from './attention';
import { cells, chartPage, COLUMNS } from './chart';
import { TASKS, train, type Options, type Outcome } from './trainer';

class UsageError extends Error {}

const DEFAULTS = {
  task: 'copy',
  attention: 'improved-clustered',
  length: '64',
  steps: '600',
  batch: '32',
  seed: '0',
  'learning-rate': '0.002',
  dim: '64',
  heads: '4',
  hidden: '128',
  layers: '2',
  output: 'build/training-runs',
};
type Name = keyof typeof DEFAULTS;

const HELP = `Usage: npm run train -- [options]

Trains a small transformer encoder, then prints a table of all runs of that task and length.

  --task T              ${Object.keys(TASKS).join(' or ')} (${DEFAULTS.task})
  --attention A         ${KINDS.join(', ')} or all
                        (${DEFAULTS.attention})
  --length N            tokens of a sequence, even (${DEFAULTS.length})
  --steps S             steps of training (${DEFAULTS.steps})
  --batch B             sequences of a step (${DEFAULTS.batch})
  --seed S              of the weights and the batches (${DEFAULTS.seed})
  --learning-rate R     its largest value (${DEFAULTS['learning-rate']})
  --dim D --heads H     width of a token, heads of attention (${DEFAULTS.dim}, ${DEFAULTS.heads})
  --hidden F            width of the feed-forward part (${DEFAULTS.hidden})
  --layers N            (${DEFAULTS.layers})
  --pretrained FILE     weights to start from: docs/training.md
  --prefix P            what the names of the encoder's tensors start with in that file
  --resume              continue from the last save
  --output FOLDER       weights, results and learning curves (${DEFAULTS.output})
  --help                this text
`;

function readArguments(args: string[]) {
  const text = (name: Name) => ({ type: 'string' as const, default: DEFAULTS[name] });
  const names = Object.keys(DEFAULTS) as Name[];
  const options = Object.fromEntries(names.map((name) => [name, text(name)]));
  try {
    const others = {
      resume: { type: 'boolean' as const, default: false },
      help: { type: 'boolean' as const, default: false, short: 'h' },
      pretrained: { type: 'string' as const },
      prefix: { type: 'string' as const },
    };
    const { values } = parseArgs({ args, options: { ...options, ...others } });
    return values as { [name in Name]: string } & { help: boolean } & Pick<
        Options,
        'resume' | 'pretrained' | 'prefix'
      >;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function integer(name: string, text: string, minimum: number): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= minimum) return value;
  throw new UsageError(`--${name} must be an integer from ${minimum} up, received "${text}"`);
}

function optionsOf(values: ReturnType<typeof readArguments>, attention: Kind): Options {
  const { task, pretrained, prefix } = values;
  const count = (name: Name): number => integer(name, values[name], 1);
  const [length, dim, heads] = [count('length'), count('dim'), count('heads')];
  const learningRate = Number(values['learning-rate']);
  if (!Object.hasOwn(TASKS, task)) {
    throw new UsageError(`--task must be ${Object.keys(TASKS).join(' or ')}, received "${task}"`);
  }
  if (!(learningRate > 0)) throw new UsageError('--learning-rate must be a positive number');
  if (dim % heads !== 0) throw new UsageError('--dim must be a multiple of --heads');
  if (length < 8 || length % 2 !== 0) {
    throw new UsageError('--length must be even and at least 8');
  }
  const checkpoint = join(values.output, `${task}-${length}-${attention}.safetensors`);
  if (prefix !== undefined && pretrained === undefined) {
    throw new UsageError('--prefix is of the names in the file of --pretrained');
  }
  if (pretrained !== undefined && resolve(pretrained) === resolve(checkpoint)) {
    throw new UsageError(`the run would overwrite ${pretrained}: give it another --output`);
  }
  return {
    task,
    attention,
    length,
    steps: count('steps'),
    batch: count('batch'),
    seed: integer('seed', values.seed, 0),
    learningRate,
    dim,
    heads,
    hidden: count('hidden'),
    layers: count('layers'),
    pretrained,
    prefix,
    checkpoint,
    resume: values.resume,
  };
}

function trainOne(options: Options): void {
  const bar = new SingleBar({
    format: `${options.attention.padEnd(20)}{bar} {value}/{total} loss {loss} accuracy {accuracy} ETA {eta_formatted}`,
    hideCursor: true,
    noTTYOutput: false,
  });
  bar.start(options.steps, 0, { loss: '-', accuracy: '-' });
  // Smoothed over some ten steps: single batches jump about.
  let [smoothLoss, smoothAccuracy] = [NaN, NaN];
  const smooth = (old: number, now: number): number =>
    Number.isNaN(old) ? now : 0.9 * old + 0.1 * now;
  const outcome = train(options, (step, loss, accuracy) => {
    smoothLoss = smooth(smoothLoss, loss);
    smoothAccuracy = smooth(smoothAccuracy, accuracy);
    const share = `${(100 * smoothAccuracy).toFixed(1)} %`;
    bar.update(step, { loss: smoothLoss.toFixed(4), accuracy: share });
  });
  bar.stop();
  writeFileSync(outcomeFile(options.checkpoint), JSON.stringify(outcome, undefined, 1));
}

const outcomeFile = (checkpoint: string): string => checkpoint.replace(/safetensors$/, 'json');

/** All kinds, each in a process of its own, so that each has its own memory. */
function trainAll(args: string[]): void {
  for (const kind of KINDS) {
    const { status } = spawnSync(process.execPath, [__filename, ...args, '--attention', kind], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, TRAINING_TABLE: 'no' },
    });
    if (status !== 0) throw new Error(`training with ${kind} attention failed`);
  }
}

/** The table and the page of all runs of this task and length. */
function summarise(options: Options, folder: string): void {
  const outcomes = KINDS.flatMap((attention) => {
    const file = join(folder, `${options.task}-${options.length}-${attention}.json`);
    return existsSync(file) ? [JSON.parse(readFileSync(file, 'utf8')) as Outcome] : [];
  });
  const widths = [20, 11, 9, 13, 12, 12];
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, i) => (i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!)))
      .join('');
  console.log(`\n${options.task}, length ${options.length}`);
  console.log([COLUMNS, ...outcomes.map(cells)].map(line).join('\n'));
  const page = join(folder, `${options.task}-${options.length}.html`);
  writeFileSync(page, chartPage(`${options.task}, length ${options.length}`, outcomes));
  console.log(`\nLearning curves: ${resolve(page)}`);
}

function main(args: string[]): void {
  const values = readArguments(args);
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const all = values.attention === 'all';
  const kind = KINDS.find((name) => name === (all ? 'exact' : values.attention));
  if (kind === undefined) {
    const known = `${KINDS.join(', ')} or all`;
    throw new UsageError(`--attention must be ${known}, received "${values.attention}"`);
  }
  const options = optionsOf(values, kind);
  mkdirSync(values.output, { recursive: true });
  if (all)
    trainAll(args.filter((arg, i) => arg !== '--attention' && args[i - 1] !== '--attention'));
  else trainOne(options);
  if (process.env['TRAINING_TABLE'] !== 'no') summarise(options, values.output);
}

try {
  main(process.argv.slice(2));
} catch (error) {
  console.error(`train: ${(error as Error).message}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
