/** `cluster-attention tune`: the fastest setting within an error, for given inputs. */
import { setNumThreads } from '../threads';
import { ExactRows, measureAccuracy } from './accuracy';
import { Arguments } from './arguments';
import { HELP_RUN, helpInputs } from './bench';
import { define, sampleOutput } from './definition';
import { drawTensors } from './distributions';
import { type Inputs, loadInputs } from './inputs';
import { digits, formatError, formatTime, labelOf } from './labels';
import { type CallOptions, callSettings, methodOf, syncForm } from './methods';
import { OWN_PROCESS } from './participant';
import type { Group, Selection, Settings } from './plan';
import { Progress } from './progress';
import type { Case, Problem, Recording, Result } from './record';
import { exitCodeOf, measure, quoteCommand } from './run';
import { finalists, modelCost, paretoFront, searchSettings, type Setting } from './search';
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

  --target-error E      (0.05)

${helpInputs('  --length N            tokens of synthetic inputs')}

${HELP_RUN}
  --threads T           (all)
`;

type Conditions = ReturnType<typeof readConditions>;

/** The error of a setting on sampled rows, by a call in this process. */
function errorMeter(inputs: Inputs, conditions: Conditions, settings: Settings) {
  const exact = new ExactRows(inputs);
  return ({ method: name, parameters }: Setting): number => {
    const method = methodOf(name);
    const options = {
      ...method.options(inputs, parameters, settings.seed),
      ...callSettings(conditions),
    };
    const details = syncForm(method.operation, false)!({ ...options, details: true });
    const definition = define({ method, inputs }, options, details as CallOptions);
    // Other rows than those of the final measurement: what is found must hold there too.
    const { output } = details as { output: Float32Array };
    const samples = sampleOutput(definition, output, settings.rows, settings.seed + 1);
    return measureAccuracy(samples, exact, 1).error!;
  };
}

function search(
  selection: Pick<Selection, 'source' | 'problems'>,
  conditions: Conditions,
  settings: Settings,
  target: number,
): Setting[] {
  const [problem] = selection.problems as [Problem];
  const { source } = selection;
  const inputs =
    typeof source === 'string'
      ? { problem, ...drawTensors(source, problem, settings.seed) }
      : loadInputs(source);
  setNumThreads(conditions.threads[0]!);
  const progress = new Progress(process.stderr);
  const meter = errorMeter(inputs, conditions, settings);
  let tried = 0;
  const trials = searchSettings(problem, target, (setting) => {
    const error = meter(setting);
    progress.show(1 - 1 / (1 + ++tried / 40), `setting ${tried}: error ${formatError(error)}`);
    return error;
  });
  progress.clear();
  const within = trials.filter(({ error }) => error <= target).length;
  print(`${trials.length} settings tried, ${within} within an error of ${target}`);
  return finalists(trials, target, FINALISTS);
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
  const entries = settings.map((setting) => ({
    case: { ...base, ...setting },
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
export function codeOf({ method, parameters, device, precision }: Case): string {
  const options = [
    'query, key, value, shape,',
    ...Object.entries(parameters).map(
      ([name, value]) => `${name}: ${typeof value === 'string' ? `'${value}'` : value},`,
    ),
    ...(device === 'cpu' ? [] : [`device: '${device}',`]),
    ...(precision === 'float32' ? [] : [`precision: '${precision}',`]),
  ];
  return `await ${methodOf(method).operation}({\n${options.map((line) => `  ${line}`).join('\n')}\n});`;
}

function conclude({ results }: Recording, target: number): void {
  const measured = results.filter(({ time }) => time !== undefined);
  const front = paretoFront(
    measured.map((result) => ({
      result,
      error: result.accuracy!.error!,
      cost: result.time!.median,
    })),
  );
  print('\nBeaten by no other in both speed and error:');
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
    groups: [groupOf(source, conditions, found)],
    settings,
    destinations,
    command: quoteCommand(['npx', 'cluster-attention', 'tune', ...parameters]),
  });
  if (recording.complete) conclude(recording, target);
  return exitCodeOf(recording);
}
