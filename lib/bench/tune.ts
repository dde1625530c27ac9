/** `cluster-attention tune`: the fastest setting within an error, for given inputs. */
import { setNumThreads } from '../threads';
import { relativeL2, sampleRows } from './accuracy';
import { Arguments } from './arguments';
import { HELP_RUN, helpInputs } from './bench';
import { drawTensors } from './distributions';
import { type Inputs, loadInputs } from './inputs';
import { digits, formatError, formatTime, labelOf } from './labels';
import { callSettings, methodOf, syncForm } from './methods';
import { OWN_PROCESS } from './participant';
import type { Group, Selection, Settings } from './plan';
import { Progress } from './progress';
import type { Case, Problem, Recording, Result } from './record';
import { exitCodeOf, measure, quoteCommand } from './run';
import {
  finalists,
  modelCost,
  paretoFront,
  searchSettings,
  type Setting,
  type Trial,
} from './search';
import {
  FLAGS,
  readConditions,
  readSettings,
  readSource,
  RUN_OPTIONS,
  SOURCE_OPTIONS,
} from './selection';
import { isApart } from './statistics';
import { print } from './terminal';
import { UsageError } from './usage';

const FINALISTS = 10;
const EXACT_UP_TO = 16_384;

const HELP = `Usage: cluster-attention tune [options] --input file.safetensors --target-error 0.05

Looks for the fastest setting of the clustered attentions whose error (relative L2 distance to exact
attention) is within the target on your inputs, shows what no other setting beats in speed and error,
and prints the call to paste. The settings that are tried follow from the inputs and the seed alone.
Their errors are over all rows, beyond 16,384 tokens over some, and the tables show them over --rows.
Ctrl-C during the search leaves no file: until the tables begin, nothing has been measured.

  --target-error E      (0.05)

${helpInputs('  --length N            tokens of synthetic inputs')}

${HELP_RUN}
  --threads T           (all)
`;

type Conditions = ReturnType<typeof readConditions>;

/**
 * The queries of every sequence whose exact attention is computed: all up to 16,384 tokens, beyond
 * that as many as cost the same.
 */
export function comparedQueries({ queryLength, keyLength }: Problem, seed: number): number[] {
  const affordable = Math.max(1, Math.floor(EXACT_UP_TO ** 2 / keyLength));
  return sampleRows(1, queryLength, affordable, seed).map(({ query }) => query);
}

/** The error of a setting on these queries, by a call in this process. */
export function errorMeter(
  inputs: Inputs,
  conditions: Pick<Conditions, 'device' | 'precision'>,
  queries: readonly number[],
  seed: number,
): (setting: Setting) => number {
  const { problem, key, value } = inputs;
  const { batch, heads, queryLength, headDim, valueDim } = problem;
  const compared = (tensor: Float32Array, dim: number): Float32Array => {
    const rows = new Float32Array(batch * heads * queries.length * dim);
    for (let sequence = 0, place = 0; sequence < batch * heads; ++sequence) {
      for (const query of queries) {
        const row = (sequence * queryLength + query) * dim;
        rows.set(tensor.subarray(row, row + dim), place);
        place += dim;
      }
    }
    return rows;
  };
  const exact = syncForm('attention', false)!({
    query: compared(inputs.query, headDim),
    key,
    value,
    shape: { ...problem, queryLength: queries.length },
    device: conditions.device,
  }) as Float32Array;
  return ({ method: name, parameters }) => {
    const method = methodOf(name);
    const options = { ...method.options(inputs, parameters, seed), ...callSettings(conditions) };
    const output = syncForm(method.operation, false)!(options) as Float32Array;
    return relativeL2([[compared(output, valueDim), exact]]);
  };
}

/** The settings that are worth a clock, and on how many queries their errors were found. */
interface Found {
  readonly settings: readonly Trial[];
  readonly queries: number;
}

function search(
  selection: Pick<Selection, 'source' | 'problems'>,
  conditions: Conditions,
  { seed }: Settings,
  target: number,
): Found {
  const [problem] = selection.problems as [Problem];
  const { source } = selection;
  const inputs =
    typeof source === 'string'
      ? { problem, ...drawTensors(source, problem, seed) }
      : loadInputs(source);
  setNumThreads(conditions.threads[0]!);
  const progress = new Progress(process.stderr);
  const queries = comparedQueries(problem, seed);
  const meter = errorMeter(inputs, conditions, queries, seed);
  let tried = 0;
  const trials = searchSettings(problem, target, (setting) => {
    const error = meter(setting);
    progress.show(1 - 1 / (1 + ++tried / 40), `setting ${tried}: error ${formatError(error)}`);
    return error;
  });
  progress.clear();
  const within = trials.filter(({ error }) => error <= target).length;
  print(`${trials.length} settings tried, ${within} within an error of ${target}`);
  const settings = finalists(trials, target, FINALISTS);
  if (queries.length === problem.queryLength) return { settings, queries: queries.length };
  // The best of many on some queries looks better than it is: others must confirm it.
  const confirm = errorMeter(inputs, conditions, comparedQueries(problem, seed + 1), seed);
  return {
    settings: settings.map((setting) => ({ ...setting, error: confirm(setting) })),
    queries: queries.length,
  };
}

function groupOf(
  { problems, source, data }: Pick<Selection, 'source' | 'problems' | 'data'>,
  { threads, device, precision }: Conditions,
  settings: readonly Setting[],
): Group {
  const [problem] = problems as [Problem];
  const base: Case = {
    implementation: 'cluster-attention',
    method: 'exact',
    parameters: {},
    problem,
    threads: threads[0]!,
    device,
    precision,
    gradient: false,
    data,
  };
  const tooLong = {
    status: 'skipped',
    reason: `exact attention is timed up to ${EXACT_UP_TO} keys`,
  } as const;
  const exact =
    problem.keyLength > EXACT_UP_TO
      ? { case: base, absent: tooLong }
      : { case: base, command: OWN_PROCESS };
  const entries = settings.map(({ method, parameters }) => ({
    case: { ...base, method, parameters },
    command: OWN_PROCESS,
  }));
  return { problem, source, entries: [exact, ...entries] };
}

const costOf = ({ case: one }: Result): number => modelCost(one as Setting, one.problem);

/**
 * The fastest within the target. Of those whose times cannot be told apart, the one with the fewest
 * operations, so that noise does not choose.
 */
export function chooseFastest(results: readonly Result[], target: number): Result | undefined {
  const within = results
    .filter(({ time, accuracy }) => time !== undefined && accuracy!.error! <= target)
    .toSorted((a, b) => a.time!.median - b.time!.median);
  const [fastest] = within;
  if (fastest === undefined || fastest.case.method === 'exact') return fastest;
  return within
    .filter(({ case: one, time }) => one.method !== 'exact' && !isApart(time!, fastest.time!))
    .toSorted((a, b) => costOf(a) - costOf(b))[0];
}

/** The call, with the options that are not left to the package. */
export function codeOf({ method, parameters, device, precision, seed }: Case): string {
  const options = [
    'query, key, value, shape,',
    ...Object.entries(parameters).map(
      ([name, value]) => `${name}: ${typeof value === 'string' ? `'${value}'` : value},`,
    ),
    ...(seed === undefined || method === 'exact' ? [] : [`seed: ${seed},`]),
    ...(device === 'cpu' ? [] : [`device: '${device}',`]),
    ...(precision === 'float32' ? [] : [`precision: '${precision}',`]),
  ];
  return `await ${methodOf(method).operation}({\n${options.map((line) => `  ${line}`).join('\n')}\n});`;
}

/** The results with the errors of the search, which come from more rows. */
export function withErrors(results: readonly Result[], { settings }: Found): Result[] {
  return results.map((result, i) => {
    const setting = settings[i - 1]; // exact attention comes first
    if (setting === undefined || result.accuracy === undefined) return result;
    return { ...result, accuracy: { ...result.accuracy, error: setting.error } };
  });
}

function describeRows({ batch, heads, queryLength }: Problem, queries: number): string {
  const [rows, all] = [queries, queryLength].map((n) => (batch * heads * n).toLocaleString('en'));
  return rows === all ? `all ${all} rows` : `${rows} of ${all} rows`;
}

function conclude({ results }: Recording, found: Found, target: number): void {
  const measured = withErrors(results, found).filter(({ time }) => time !== undefined);
  const rows = describeRows(results[0]!.case.problem, found.queries);
  const front = paretoFront(
    measured.map((result) => ({
      result,
      error: result.accuracy!.error!,
      cost: result.time!.median,
    })),
  );
  print(`\nBeaten by no other in both speed and error, errors over ${rows}:`);
  for (const { result, error, cost } of front) {
    const gain = result.speedup === undefined ? '' : `, ${digits(result.speedup)}× exact`;
    print(`  error ${formatError(error)}: ${formatTime(cost)}${gain}, ${labelOf(result.case)}`);
  }
  const chosen = chooseFastest(measured, target);
  if (chosen === undefined) {
    print(`\nNothing measured is within an error of ${target}: use exact attention.`);
    return;
  }
  print(
    `\nFastest within ${target}: error ${formatError(chosen.accuracy!.error!)}, ` +
      `${formatTime(chosen.time!.median)}\n\n${codeOf(chosen.case)}`,
  );
}

/** @returns the exit code */
export async function tune(parameters: readonly string[]): Promise<number> {
  const names = [...SOURCE_OPTIONS, ...RUN_OPTIONS, 'target-error'];
  const options = new Arguments(parameters, names, FLAGS);
  if (options.flag('help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const target = options.real('target-error', 0.05);
  const source = readSource(options);
  const conditions = readConditions(options);
  const settings = readSettings(options);
  if (conditions.gradient)
    throw new UsageError('tune looks at the forward pass: --grad is for bench');
  if (source.problems.length > 1) {
    throw new UsageError(
      options.has('length') ? 'tune takes one --length' : 'tune needs --input or --length',
    );
  }
  if (conditions.threads.length > 1) throw new UsageError('tune takes one --threads');
  const destinations = {
    json: options.writablePath('json'),
    report: options.writablePath('report'),
  };
  const found = search(source, conditions, settings, target);
  const recording = await measure({
    groups: [groupOf(source, conditions, found.settings)],
    settings,
    destinations,
    command: quoteCommand(['npx', 'cluster-attention', 'tune', ...parameters]),
  });
  if (recording.complete) conclude(recording, found, target);
  return exitCodeOf(recording);
}
