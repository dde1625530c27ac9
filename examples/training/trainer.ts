/** Trains one model on one task. */
import { existsSync } from 'node:fs';
import type { Kind } from './attention';
import { loadCheckpoint, saveCheckpoint, type Record, type Settings } from './checkpoint';
import { Model, type Batch, type Question } from './model';
import { AdamW } from './parameters';
import { loadPretrained } from './pretrained';
import { Random } from './random';
import { copyBatch, copyQuestion } from './tasks/copy';
import { listOpsBatch, listOpsQuestion } from './tasks/list-ops';

interface Task {
  question(length: number): Question;
  batch(count: number, length: number, random: Random): Batch;
}

export const TASKS: Readonly<{ [name: string]: Task }> = {
  copy: { question: copyQuestion, batch: copyBatch },
  listops: { question: listOpsQuestion, batch: listOpsBatch },
};

export interface Options {
  readonly task: string;
  readonly attention: Kind;
  readonly length: number;
  readonly steps: number;
  readonly batch: number;
  readonly seed: number;
  readonly learningRate: number;
  readonly dim: number;
  readonly heads: number;
  readonly hidden: number;
  readonly layers: number;
  /** A file of weights to start from, and what the encoder's names start with in it. */
  readonly pretrained: string | undefined;
  readonly prefix: string | undefined;
  /** Where weights are saved, and resumed from if `resume`. */
  readonly checkpoint: string;
  readonly resume: boolean;
}

export interface Outcome {
  readonly task: string;
  readonly attention: Kind;
  readonly length: number;
  readonly steps: number;
  readonly parameters: number;
  /** On batches that were never trained on. */
  readonly accuracy: number;
  readonly loss: number;
  /** Median; null when a resumed run had no step left to make. */
  readonly millisecondsPerStep: number | null;
  /** The most memory that the process held. */
  readonly megabytes: number;
  readonly history: readonly Record[];
}

const RECORD_EVERY = 25;
const SAVE_EVERY = 200;
const EVALUATION_BATCHES = 16;
/** Evaluation draws from streams that training never reaches. */
const EVALUATION_STREAM = 2 ** 31;
const PARAMETER_STREAM = 2 ** 32 - 1;

/** Up over the first steps, then down along a cosine to a tenth. */
export function learningRateAt(step: number, steps: number, highest: number): number {
  const warmUp = Math.min(100, Math.max(1, steps / 10));
  if (step < warmUp) return (highest * (step + 1)) / warmUp;
  const done = Math.min(1, (step - warmUp) / Math.max(1, steps - warmUp));
  return highest * (0.1 + 0.45 * (1 + Math.cos(Math.PI * done)));
}

/** What a run's bits depend on. */
function settingsOf(options: Options): Settings {
  const { checkpoint: _file, resume: _resume, ...settings } = options;
  return settings;
}

/** Trains to the end; `report` hears of every step. */
export function train(
  options: Options,
  report: (step: number, loss: number, accuracy: number) => void,
): Outcome {
  const { task, length, batch, seed, steps, checkpoint } = options;
  const { question, batch: draw } = TASKS[task]!;
  const model = new Model(
    options.attention,
    question(length),
    options,
    new Random(seed, PARAMETER_STREAM),
  );
  const optimiser = new AdamW(model.parameters);
  const settings = settingsOf(options);
  let history: Record[] = [];
  if (options.resume && existsSync(checkpoint)) {
    history = loadCheckpoint(checkpoint, model.parameters, optimiser, settings);
  } else if (options.pretrained !== undefined) {
    loadPretrained(options.pretrained, options.prefix ?? '', model.parameters);
  }
  const save = (): void =>
    saveCheckpoint(checkpoint, model.parameters, optimiser, settings, history);

  let [loss, correct, asked] = [0, 0, 0];
  const durations: number[] = [];
  while (optimiser.step < steps) {
    const step = optimiser.step;
    const data = draw(batch, length, new Random(seed, step));
    const start = performance.now();
    const verdict = model.run(data, true);
    optimiser.update(learningRateAt(step, steps, options.learningRate));
    durations.push(performance.now() - start);
    loss += verdict.loss;
    correct += verdict.correct;
    asked += verdict.asked;
    report(step + 1, verdict.loss, verdict.correct / verdict.asked);
    if (optimiser.step % RECORD_EVERY === 0) {
      history.push({ step: optimiser.step, loss: loss / RECORD_EVERY, accuracy: correct / asked });
      [loss, correct, asked] = [0, 0, 0];
    }
    if (optimiser.step % SAVE_EVERY === 0) save();
  }
  save();
  return {
    task,
    attention: options.attention,
    length,
    steps,
    parameters: model.parameters.count,
    ...evaluate(model, draw, options),
    millisecondsPerStep: medianOf(durations),
    megabytes: process.resourceUsage().maxRSS / 1024,
    history,
  };
}

function evaluate(model: Model, draw: Task['batch'], { batch, length, seed }: Options) {
  let [loss, correct, asked] = [0, 0, 0];
  for (let i = 0; i < EVALUATION_BATCHES; ++i) {
    const data = draw(batch, length, new Random(seed, EVALUATION_STREAM + i));
    const verdict = model.run(data, false);
    loss += verdict.loss / EVALUATION_BATCHES;
    correct += verdict.correct;
    asked += verdict.asked;
  }
  return { loss, accuracy: correct / asked };
}

function medianOf(values: readonly number[]): number | null {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? null;
}
