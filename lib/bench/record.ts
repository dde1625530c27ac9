/** What a benchmark run writes: one JSON document, from which tables and reports are made. */
import { readFileSync } from 'node:fs';
import { replaceFile, writeAll } from '../replace-file';
import type { Machine } from './machine';
import type { Summary } from './statistics';
import { UsageError } from './usage';

/** Sizes of an attention; in self-attention queryLength = keyLength. */
export interface Problem {
  readonly batch: number;
  readonly heads: number;
  readonly queryLength: number;
  readonly keyLength: number;
  readonly headDim: number;
  readonly valueDim: number;
}

/** The options of a method beyond the problem, by their names in the package. */
export interface Parameters {
  readonly clusters?: number;
  readonly topK?: number;
  readonly grouping?: 'hamming' | 'euclidean';
  readonly threshold?: 'normal' | 'data';
  readonly bits?: number;
  readonly iterations?: number;
  /** M of centroid attention. */
  readonly centroids?: number;
  /** κ of CAST. */
  readonly clusterSize?: number;
}

/** What is measured: one method on one problem under one setting. */
export interface Case {
  /** 'cluster-attention', or a peer. */
  readonly implementation: string;
  readonly method: string;
  readonly parameters: Parameters;
  readonly problem: Problem;
  readonly threads: number;
  readonly device: string;
  readonly precision: 'float32' | 'bfloat16';
  /** Whether the gradients are computed too, forward and backward as one. */
  readonly gradient: boolean;
  /** The distribution of synthetic inputs, or the name of the file. */
  readonly data: string;
  /** Of synthetic inputs and of the method's own draws; absent: 0. */
  readonly seed?: number;
}

/** How far a method is from exact attention, in double precision on sampled rows. */
export interface Accuracy {
  readonly rows: number;
  /**
   * Relative L2 distance to the double-precision result of the method itself: rounding alone. A
   * case is not timed unless this is small.
   */
  readonly rounding: number;
  /** Relative L2 distance of the output to exact attention; absent where it approximates none. */
  readonly error?: number;
  /** Mean over the rows of Σ_s |weight − exact weight|, 0 to 2. */
  readonly weights?: number;
  /** Share of the `k` keys of largest exact weight that are among the method's own. */
  readonly recall?: number;
  readonly k?: number;
  /** Relative L2 distance of the gradient by the query to that of exact attention. */
  readonly gradientError?: number;
}

export interface Timing extends Summary {
  /** Milliseconds of one call, one number per round: the mean of `repeats` calls in a row. */
  readonly samples: readonly number[];
  readonly repeats: number;
}

/** 'wrong': the result is not what the method defines, so no time was taken. */
export type Status = 'measured' | 'wrong' | 'failed' | 'skipped' | 'missing';

export interface Result {
  readonly case: Case;
  readonly status: Status;
  /** Why there is no measurement. */
  readonly reason?: string;
  readonly accuracy?: Accuracy;
  readonly time?: Timing;
  /** Floating-point operations of one call, by the formulas in docs/benchmark.md. */
  readonly flop?: number;
  readonly gflops?: number;
  /** GFLOP/s of multiply-adds in registers, measured by the same process between the rounds. */
  readonly peak?: number;
  /** gflops / peak */
  readonly share?: number;
  /** Bytes by which the process rises above its inputs and results during a call. */
  readonly memory?: number;
  /** Time of exact attention of this package in the same group of cases over this time. */
  readonly speedup?: number;
}

export interface Recording {
  readonly format: 'cluster-attention/bench';
  readonly version: 1;
  readonly command: string;
  readonly started: string;
  readonly finished: string;
  /** false when the run was interrupted. */
  readonly complete: boolean;
  readonly machine: Machine;
  readonly results: readonly Result[];
}

export function writeText(path: string, text: string): void {
  try {
    replaceFile(path, (file) => writeAll(file, Buffer.from(text)));
  } catch (error) {
    throw new UsageError(`cannot write ${path}: ${(error as Error).message}`);
  }
}

/** One line per result: small, and readable in a diff. */
export function writeRecording(path: string, recording: Recording): void {
  const { results, ...head } = recording;
  const lines = results.map((result) => `    ${JSON.stringify(result)}`).join(',\n');
  const opening = JSON.stringify(head, null, 2).replace(/\n}$/, '');
  writeText(path, `${opening},\n  "results": [\n${lines}\n  ]\n}\n`);
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const isNumber = (value: unknown): value is number => Number.isFinite(value);

/** The fields that readers rely on; everything else is shown as it is. */
function isResult(value: unknown): value is Result {
  if (!isObject(value) || !isObject(value.case) || typeof value.status !== 'string') return false;
  const { problem, parameters, method, implementation, threads } = value.case;
  if (!isObject(problem) || !isObject(parameters) || !isNumber(threads)) return false;
  if (typeof method !== 'string' || typeof implementation !== 'string') return false;
  if (!isNumber(problem.queryLength) || !isNumber(problem.keyLength)) return false;
  if (value.status !== 'measured') return true;
  const { time, accuracy } = value;
  return (
    isObject(accuracy) && isObject(time) && [time.median, time.lower, time.upper].every(isNumber)
  );
}

export function readRecording(path: string): Recording {
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    const problem = error instanceof SyntaxError ? 'it is not JSON' : (error as Error).message;
    throw new UsageError(`cannot read ${path}: ${problem}`);
  }
  const fields = isObject(parsed) ? parsed : {};
  const { format, version, results, machine } = fields;
  if (format !== 'cluster-attention/bench' || !Array.isArray(results) || !isObject(machine)) {
    throw new UsageError(`${path} is no recording of cluster-attention bench`);
  }
  if (version !== 1) {
    throw new UsageError(`${path} has version ${String(version)}, expected 1`);
  }
  const bad = results.findIndex((result) => !isResult(result));
  if (bad >= 0) throw new UsageError(`${path}: result ${bad} lacks what a result must have`);
  return fields as unknown as Recording;
}
