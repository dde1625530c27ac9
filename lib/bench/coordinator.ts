/**
 * Runs the cases: a fresh process for each, all of a group alive together and sampled in turns, so
 * that whatever disturbs the machine meets all methods alike. Only one of them works at a time.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Distribution } from './distributions';
import type { DrawRequest } from './draw';
import type { InputFile } from './inputs';
import { describeMachine } from './machine';
import { labelOf } from './labels';
import { tensorBytes } from './memory';
import { DRAWING_PROCESS, Participant, type Silence } from './participant';
import type { Entry, Group, Settings } from './plan';
import type { Preparation, SampleReply, Task } from './protocol';
import type { Problem, Recording, Result } from './record';
import { median, summarize } from './statistics';

const LEAST_ROUNDS = 3;
/** Share of the free memory that the processes of a group may take together. */
const MEMORY_SHARE = 0.6;

/** What a run tells while it goes on. */
export interface Listener {
  /** Something begins; `share` of the run is done, 0 to 1. */
  progress(share: number, what: string): void;
  /** A group has ended. */
  results(results: readonly Result[], soFar: Recording): void;
}

/** A process that was asked to prepare its case, and what it has measured. */
interface Runner {
  readonly entry: Entry;
  readonly participant?: Participant;
  reply: Preparation;
  readonly samples: number[];
  readonly peaks: number[];
  seconds: number;
}

/** As many entries at once as the memory holds. */
function wavesOf({ problem, entries }: Group): Entry[][] {
  const fitting = Math.floor((MEMORY_SHARE * freemem()) / (3 * tensorBytes(problem)));
  const size = Math.max(1, fitting);
  const waves: Entry[][] = [];
  for (let i = 0; i < entries.length; i += size) waves.push(entries.slice(i, i + size));
  return waves;
}

function resultOf({ entry, reply, samples, peaks }: Runner, seed: number): Result {
  const one = { ...entry.case, ...(seed !== 0 && { seed }) };
  if (entry.absent) return { case: one, ...entry.absent };
  if (reply.status !== 'ready') return { case: one, ...reply };
  const { accuracy, flop, memory, repeats } = reply;
  const time = { ...roundAll(summarize(samples)), samples: samples.map(sixDigits), repeats };
  const gflops = flop === undefined ? undefined : flop / time.median / 1e6;
  const peak = peaks.length > 0 ? median(peaks) : undefined;
  return {
    case: one,
    status: 'measured',
    accuracy,
    time,
    ...roundAll({ flop, gflops, peak, share: gflops && peak && gflops / peak }),
    ...(memory !== undefined && { memory }),
  };
}

/** Six digits are more than any measurement has. */
const sixDigits = (x: number): number => Number(x.toPrecision(6));

/** Rounds the fields that are there. */
function roundAll<Fields extends object>(
  fields: Fields,
): { [Name in keyof Fields]: Exclude<Fields[Name], undefined> } {
  const known = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(
    known.map(([name, value]) => [name, sixDigits(value as number)] as const),
  ) as ReturnType<typeof roundAll<Fields>>;
}

/** Times over that of exact attention in the same group. */
function withSpeedups(results: Result[]): Result[] {
  const exact = results.find(
    ({ case: { implementation, method }, status }) =>
      implementation === 'cluster-attention' && method === 'exact' && status === 'measured',
  );
  return results.map((result) =>
    exact && result.time && result.case.method !== 'kmeans'
      ? { ...result, speedup: sixDigits(exact.time!.median / result.time.median) }
      : result,
  );
}

export class Coordinator {
  readonly #groups: readonly Group[];
  readonly #settings: Settings;
  readonly #listener: Listener;
  readonly #command: string;
  readonly #started = new Date();
  readonly #machine = describeMachine();
  readonly #results: Result[] = [];
  readonly #running = new Set<Participant>();
  readonly #steps: number;
  #step = 0;
  #interrupted = false;

  constructor(groups: readonly Group[], settings: Settings, command: string, listener: Listener) {
    this.#groups = groups;
    this.#settings = settings;
    this.#command = command;
    this.#listener = listener;
    const cases = groups.flatMap(({ entries }) => entries.filter(({ absent }) => !absent));
    this.#steps = cases.length * (settings.rounds + 1);
  }

  /** Ends the run at once; run() then resolves with what has been measured. */
  interrupt(): void {
    this.#interrupted = true;
    for (const participant of this.#running) participant.kill();
  }

  async run(): Promise<Recording> {
    let drawn: { key: string; input: InputFile } | undefined;
    const folder = mkdtempSync(join(tmpdir(), 'cluster-attention-'));
    try {
      for (const group of this.#groups) {
        if (this.#interrupted) break;
        const { problem, source } = group;
        const key = JSON.stringify([problem, source]);
        if (drawn?.key !== key) {
          const input =
            typeof source === 'string' ? await this.#draw(source, problem, folder) : source;
          drawn = { key, input };
        }
        if (this.#interrupted) break;
        const results = withSpeedups(await this.#runGroup(group, drawn.input));
        this.#results.push(...results);
        this.#listener.results(results, this.#recording());
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
    return this.#recording();
  }

  #recording(): Recording {
    const all = this.#groups.reduce((sum, { entries }) => sum + entries.length, 0);
    return {
      format: 'cluster-attention/bench',
      version: 1,
      command: this.#command,
      started: this.#started.toISOString(),
      finished: new Date().toISOString(),
      complete: !this.#interrupted && this.#results.length === all,
      machine: this.#machine,
      results: this.#results,
    };
  }

  #progress(what: string): void {
    this.#listener.progress(this.#step / Math.max(this.#steps, 1), what);
  }

  async #draw(distribution: Distribution, problem: Problem, folder: string): Promise<InputFile> {
    this.#progress(`drawing ${distribution} inputs, N=${problem.keyLength}`);
    const input: InputFile = {
      path: join(folder, 'inputs.safetensors'),
      names: ['query', 'key', 'value'],
    };
    const participant = new Participant(DRAWING_PROCESS);
    this.#running.add(participant);
    const request: DrawRequest = { distribution, problem, seed: this.#settings.seed, input };
    const reply = await participant.ask<{ readonly status: 'drawn' } | Silence>(request);
    await participant.close();
    this.#running.delete(participant);
    if (reply.status === 'failed' && !this.#interrupted) {
      throw new Error(`cannot draw the inputs: ${reply.reason}`);
    }
    return input;
  }

  async #runGroup(group: Group, input: InputFile): Promise<Result[]> {
    const results: Result[] = [];
    for (const wave of wavesOf(group)) {
      if (this.#interrupted) break;
      results.push(...(await this.#runWave(wave, input)));
    }
    return results;
  }

  async #runWave(entries: readonly Entry[], input: InputFile): Promise<Result[]> {
    const runners: Runner[] = [];
    try {
      for (const entry of entries) {
        if (this.#interrupted) break;
        runners.push(await this.#prepare(entry, input));
      }
      await this.#sample(runners.filter(({ reply }) => reply.status === 'ready'));
    } finally {
      if (this.#interrupted) this.interrupt(); // those that were started meanwhile, too
      await Promise.all(runners.map(({ participant }) => participant?.close()));
      for (const { participant } of runners) if (participant) this.#running.delete(participant);
    }
    const whole = this.#interrupted
      ? runners.filter(({ entry, samples }) => entry.absent || samples.length > 0)
      : runners;
    return whole.map((runner) => resultOf(runner, this.#settings.seed));
  }

  async #prepare(entry: Entry, input: InputFile): Promise<Runner> {
    const start = { entry, samples: [], peaks: [], seconds: 0 };
    const { command, case: one } = entry;
    if (command === undefined) {
      return { ...start, reply: { status: 'failed', reason: 'no process measures it' } };
    }
    this.#progress(`checking ${labelOf(one)}, N=${one.problem.keyLength}`);
    const { rows, seed, recallKeys } = this.#settings;
    const task: Task = { case: one, input, rows, recallKeys, seed };
    const participant = new Participant(command);
    this.#running.add(participant);
    const reply = await participant.ask<Preparation>(task);
    this.#step += reply.status === 'ready' ? 1 : this.#settings.rounds + 1;
    return { ...start, participant, reply };
  }

  /** Rounds of one sample each, in turns. */
  async #sample(runners: readonly Runner[]): Promise<void> {
    const { rounds, budget } = this.#settings;
    for (let round = 0; round < rounds; ++round) {
      for (const runner of runners) {
        if (this.#interrupted) return;
        const { entry, samples, seconds, reply } = runner;
        ++this.#step;
        if (reply.status !== 'ready') continue;
        if (seconds > budget && samples.length >= LEAST_ROUNDS) continue;
        const { threads, problem } = entry.case;
        this.#progress(`${labelOf(entry.case)}, N=${problem.keyLength}, threads ${threads}`);
        await this.#sampleOnce(runner);
      }
    }
  }

  async #sampleOnce(runner: Runner): Promise<void> {
    const start = performance.now();
    const reply = await runner.participant!.ask<SampleReply>({ sample: true });
    runner.seconds += (performance.now() - start) / 1000;
    if (this.#interrupted) return;
    if ('milliseconds' in reply) {
      runner.samples.push(reply.milliseconds);
      if (reply.peak !== undefined) runner.peaks.push(reply.peak);
    } else {
      runner.reply = reply;
    }
  }
}
