/**
 * What the coordinator and the processes that measure say to each other: one JSON object per line,
 * requests on standard input, replies on standard output, so that a peer may be written in any
 * language. A process prepares its case, then takes one sample per request, until its input ends.
 */
import { createInterface } from 'node:readline';
import type { InputFile } from './inputs';
import type { Accuracy, Case } from './record';
import { messageOf } from './terminal';

/** The first request: what to measure. */
export interface Task {
  readonly case: Case;
  readonly input: InputFile;
  /** How many rows are checked. */
  readonly rows: number;
  /** k of the recall. */
  readonly recallKeys: number;
  readonly seed: number;
}

/** The reply to a task: nothing is timed unless the result is right. */
export type Preparation =
  | {
      readonly status: 'ready';
      readonly accuracy: Accuracy;
      readonly memory?: number;
      readonly flop?: number;
      /** Calls in a row that make one sample. */
      readonly repeats: number;
    }
  | {
      readonly status: 'wrong' | 'failed' | 'missing';
      readonly reason: string;
      readonly accuracy?: Accuracy;
    };

/** The reply to {"sample": true}. */
export interface SampleReply {
  /** Of one call. */
  readonly milliseconds: number;
  /** GFLOP/s, see Result. */
  readonly peak?: number;
}

/** A case that is ready to be timed. */
export interface Prepared {
  readonly reply: Preparation;
  run(): unknown;
  peak?(): number;
}

async function takeSample({ reply, run, peak }: Prepared): Promise<SampleReply> {
  if (reply.status !== 'ready') throw new Error('there is nothing to sample');
  const start = process.hrtime.bigint();
  for (let call = 0; call < reply.repeats; ++call) {
    const result = run();
    if (result instanceof Promise) await result;
  }
  const milliseconds = Number(process.hrtime.bigint() - start) / 1e6 / reply.repeats;
  return { milliseconds, ...(peak && { peak: peak() }) };
}

/** How often a call of this many milliseconds is repeated for one sample. */
export function repeatsFor(milliseconds: number): number {
  return Math.max(1, Math.min(1000, Math.round(SAMPLE / Math.max(milliseconds, 1e-3))));
}

/** Milliseconds that a sample aims at, so that the clock and single interrupts matter little. */
const SAMPLE = 10;

function answer(reply: object): void {
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}

/** Answers requests until the input ends. Errors are replies. */
export async function answerRequests(
  reply: (request: unknown) => object | Promise<object>,
): Promise<void> {
  // Of the terminal, to all its processes: the coordinator decides.
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      answer(await reply(JSON.parse(line)));
    } catch (error) {
      answer({ status: 'failed', reason: messageOf(error) });
    }
  }
}

/** Serves a task, then samples of it. */
export async function serve(prepare: (task: Task) => Prepared | Promise<Prepared>): Promise<void> {
  let prepared: Prepared | undefined;
  await answerRequests(async (request) => {
    if (prepared !== undefined) return takeSample(prepared);
    prepared = await prepare(request as Task);
    return prepared.reply;
  });
}
