/** `cluster-attention compare A.json B.json`: what became faster or slower, beyond the spread. */
import { Arguments } from './arguments';
import { describeGroup, digits, formatError, formatTime, labelOf } from './labels';
import { readRecording, type Recording, type Result } from './record';
import { isApart } from './statistics';
import { print } from './terminal';
import { UsageError } from './usage';

export type Verdict = 'faster' | 'slower' | 'same' | 'gone' | 'new' | 'broken';

export interface Comparison {
  readonly name: string;
  readonly verdict: Verdict;
  /** Time before over time after. */
  readonly ratio?: number;
  /** Error after over error before, where both are known and it grew beyond rounding. */
  readonly worse?: number;
  readonly before?: Result;
  readonly after?: Result;
}

/** Errors that differ by less say nothing: another order of sums does as much. */
const ERROR_MARGIN = 1.01;
const ROUNDING = 1e-5;

const nameOf = ({ case: one }: Result): string => `${describeGroup(one)}: ${labelOf(one)}`;

function byName({ results }: Recording): Map<string, Result> {
  return new Map(results.map((result) => [nameOf(result), result]));
}

function compareResults(name: string, before: Result, after: Result): Comparison {
  const both = { name, before, after };
  if (before.time === undefined) {
    return { ...both, verdict: after.time === undefined ? 'same' : 'new' };
  }
  if (after.time === undefined) {
    return { ...both, verdict: after.status === 'wrong' ? 'broken' : 'gone' };
  }
  const ratio = before.time.median / after.time.median;
  const apart = isApart(before.time, after.time);
  const [was, is] = [before.accuracy?.error, after.accuracy?.error];
  const known = was !== undefined && is !== undefined;
  return {
    ...both,
    verdict: apart ? (ratio > 1 ? 'faster' : 'slower') : 'same',
    ratio,
    ...(known && is > ROUNDING && is > was * ERROR_MARGIN && { worse: is / was }),
  };
}

/** Case by case; those of `before` first. */
export function compareRecordings(before: Recording, after: Recording): Comparison[] {
  const [was, is] = [byName(before), byName(after)];
  const kept = Array.from(was, ([name, result]): Comparison => {
    const now = is.get(name);
    return now ? compareResults(name, result, now) : { name, verdict: 'gone', before: result };
  });
  const added = Array.from(is)
    .filter(([name]) => !was.has(name))
    .map(([name, result]): Comparison => ({ name, verdict: 'new', after: result }));
  return [...kept, ...added];
}

function line({ name, verdict, ratio, worse, before, after }: Comparison): string {
  const times = [before?.time, after?.time]
    .map((time) => (time === undefined ? '–' : formatTime(time.median)))
    .join(' → ');
  const factor = ratio === undefined ? '' : ` (${digits(ratio)}×)`;
  const errors =
    worse === undefined
      ? ''
      : `; ERROR GREW ${formatError(before!.accuracy!.error!)} → ${formatError(after!.accuracy!.error!)}`;
  return `${verdict.padEnd(7)} ${name}: ${times}${factor}${errors}`;
}

const HELP = `Usage: cluster-attention compare BEFORE.json AFTER.json

Says which cases became faster or slower by more than the spread: the middle halves of the samples
do not overlap. Exit code 1 when something became slower, less exact, or wrong.
`;

/** @returns the exit code */
export function compare(parameters: readonly string[]): number {
  const options = new Arguments(parameters, [], [], 2);
  if (options.flag('help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const [first, second] = options.positionals;
  if (first === undefined || second === undefined) {
    throw new UsageError('compare expects two files: BEFORE.json AFTER.json');
  }
  const [before, after] = [readRecording(first), readRecording(second)];
  if (before.machine.processor !== after.machine.processor) {
    print(
      `Another machine: ${before.machine.processor} → ${after.machine.processor}; times say little.`,
    );
  }
  const comparisons = compareRecordings(before, after);
  for (const comparison of comparisons) print(line(comparison));
  const count = (verdict: Verdict): number =>
    comparisons.filter((one) => one.verdict === verdict).length;
  const worse = comparisons.filter((one) => one.worse !== undefined).length;
  print(
    `${count('faster')} faster, ${count('slower')} slower, ${count('same')} the same within the spread, ` +
      `${count('new')} new, ${count('gone')} gone, ${count('broken')} broken, ${worse} less exact`,
  );
  return count('slower') + count('broken') + worse > 0 ? 1 : 0;
}
