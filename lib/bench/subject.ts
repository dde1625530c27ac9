/** A case of this package in this process: called once, checked, and ready to be timed. */
import { binding } from '../binding';
import { setNumThreads } from '../threads';
import { ExactRows, measureAccuracy, relativeL2, sampleRows } from './accuracy';
import { define, type Definition, sampleOutput } from './definition';
import { countFlops } from './flops';
import { type Inputs, loadInputs } from './inputs';
import { extraMemoryOf } from './memory';
import {
  type CallOptions,
  callSettings,
  type Method,
  methodOf,
  type Run,
  syncForm,
} from './methods';
import { type Prepared, type Preparation, repeatsFor, type Task } from './protocol';
import { exactQueryGradient } from './query-gradients';
import { gaussianArray } from './random';
import type { Accuracy, Parameters, Problem } from './record';

/** Rounding beyond this is no rounding: a wrong kernel is off by orders of magnitude. */
const BOUNDS = { float32: 1e-4, bfloat16: 2 ** -6 };
/** Leading rows that a first, uncounted call works on: it starts threads and pages in code. */
const WARM_UP_ROWS = 64;
const WARM_UP_COUNT = 8;

/** The same problem with few rows. */
function shorten(inputs: Inputs): Inputs {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = inputs.problem;
  const queries = Math.min(queryLength, WARM_UP_ROWS);
  const keys = Math.min(keyLength, WARM_UP_ROWS);
  const sequences = batch * heads;
  return {
    problem: { ...inputs.problem, queryLength: queries, keyLength: keys },
    query: inputs.query.subarray(0, sequences * queries * headDim),
    key: inputs.key.subarray(0, sequences * keys * headDim),
    value: inputs.value.subarray(0, sequences * keys * valueDim),
  };
}

/** Counts for so few rows: memory that the warm-up leaves behind is not measured later. */
function reduce(parameters: Parameters): Parameters {
  const entries = Object.entries(parameters).map(([name, value]) => [
    name,
    typeof value === 'number' ? Math.min(value, WARM_UP_COUNT) : value,
  ]);
  return Object.fromEntries(entries) as Parameters;
}

/** What a call of either kind leaves. */
interface Outcome {
  readonly output: Float32Array;
  /** By option; undefined where no gradient is asked for. */
  readonly gradients?: Readonly<Record<string, Float32Array>>;
}

/** The synchronous call, or forward and backward of the Vjp form. */
function caller(run: Run, options: CallOptions, gradOutput: Float32Array | undefined) {
  if (gradOutput === undefined) return (): Outcome => ({ output: run(options) as Float32Array });
  return (): Outcome => {
    const vjp = run(options) as {
      output: Float32Array;
      backward(gradOutput: Float32Array): Record<string, Float32Array>;
      dispose(): void;
    };
    const gradients = vjp.backward(gradOutput);
    vjp.dispose();
    return { output: vjp.output, gradients };
  };
}

const dot = (a: Float32Array, b: Float32Array): number => {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i]! * b[i]!;
  return sum;
};

/** A case that can be called. */
interface Subject {
  readonly task: Task;
  readonly method: Method;
  readonly inputs: Inputs;
  readonly options: CallOptions;
  /** Of the call: centroid attention has other queries than its inputs. */
  readonly shape: Problem;
  readonly gradOutput: Float32Array | undefined;
  call(): Outcome;
}

/** The results of a call beside what they should be. */
interface Examination extends Subject, Definition {
  readonly outcome: Outcome;
}

/** Rounding of the gradients, and the error of that by the query. */
function examineGradients(
  { task, inputs, operands, shape, queryGradient, outcome }: Examination,
  gradOutput: Float32Array,
): { rounding: number; gradientError?: number } {
  const gradients = outcome.gradients!;
  // Every attention is linear in its values: Σ gradOutput·output = Σ gradient·value.
  const through = dot(gradients.value!, operands.value);
  const direct = dot(gradOutput, outcome.output);
  const size = Math.sqrt(dot(gradOutput, gradOutput) * dot(outcome.output, outcome.output));
  const linear = Math.abs(through - direct) / size;
  if (queryGradient === undefined) return { rounding: linear };
  const rows = sampleRows(
    shape.batch * shape.heads,
    shape.queryLength,
    Math.ceil(task.rows / 4),
    task.seed,
  );
  const samples = rows.map((row) => {
    const place = (row.sequence * shape.queryLength + row.query) * shape.headDim;
    return {
      actual: gradients.query!.subarray(place, place + shape.headDim),
      own: queryGradient(gradOutput, row),
      exact: exactQueryGradient(inputs, gradOutput, row),
    };
  });
  const rounding = relativeL2(samples.map(({ actual, own }) => [actual, own]));
  const gradientError = relativeL2(samples.map(({ actual, exact }) => [actual, exact]));
  return { rounding: Math.max(linear, rounding), gradientError };
}

function examine(subject: Subject, outcome: Outcome): Accuracy {
  const { task, method, inputs, options, gradOutput } = subject;
  const details =
    method.operation === 'attention'
      ? {}
      : syncForm(method.operation, false)!({ ...options, details: true });
  const definition = define(subject, options, details as CallOptions);
  const examination = { ...subject, ...definition, outcome };
  const samples = sampleOutput(examination, outcome.output, task.rows, task.seed);
  const k = Math.min(task.recallKeys, inputs.problem.keyLength);
  const accuracy = measureAccuracy(samples, new ExactRows(inputs), k);
  if (gradOutput === undefined) return accuracy;
  const { rounding, ...gradient } = examineGradients(examination, gradOutput);
  return { ...accuracy, ...gradient, rounding: Math.max(accuracy.rounding, rounding) };
}

/** What a call allocates for its results does not count as extra. */
function bytesOf({ gradients, output }: Outcome): number {
  if (gradients === undefined) return 0; // into `out`
  return Object.values(gradients).reduce((sum, g) => sum + g.byteLength, output.byteLength);
}

/** Nothing to time. */
function failure(
  status: 'wrong' | 'failed' | 'missing',
  reason: string,
  accuracy?: Accuracy,
): Prepared {
  return { reply: { status, reason, ...(accuracy && { accuracy }) }, run: () => {} };
}

/** Reads the inputs, warms up on few rows, and makes the call. */
function setUp(task: Task, run: Run): Subject {
  const { method: name, parameters, threads, gradient } = task.case;
  const method = methodOf(name);
  setNumThreads(threads);
  const inputs = loadInputs(task.input);
  const settings = callSettings(task.case);
  const small = method.options(shorten(inputs), reduce(parameters), task.seed);
  syncForm(method.operation, false)!({ ...small, ...settings });
  const options = { ...method.options(inputs, parameters, task.seed), ...settings };
  const shape = options.shape as Problem;
  const outputLength = shape.batch * shape.heads * shape.queryLength * shape.valueDim;
  const gradOutput = gradient ? gaussianArray(outputLength, task.seed + 4) : undefined;
  const out = gradient ? undefined : new Float32Array(outputLength).fill(1);
  const call = caller(run, { ...options, out }, gradOutput);
  return { task, method, inputs, options, shape, gradOutput, call };
}

/** Calls a case once, checks the result, and says how it is timed. */
export function prepareSubject(task: Task): Prepared {
  const { method, parameters, problem, precision, gradient, device } = task.case;
  const { operation } = methodOf(method);
  const run = syncForm(operation, gradient);
  if (run === undefined) return failure('missing', `this version has no ${operation}VjpSync`);
  const subject = setUp(task, run);
  let outcome: Outcome | undefined;
  const risen = extraMemoryOf(() => (outcome = subject.call()));
  const accuracy = examine(subject, outcome!);
  if (!(accuracy.rounding <= BOUNDS[precision])) {
    const reason = `the result is off by ${accuracy.rounding.toExponential(1)} from the definition`;
    return failure('wrong', reason, accuracy);
  }
  const start = performance.now();
  subject.call();
  const reply: Preparation = {
    status: 'ready',
    accuracy,
    flop: countFlops(method, problem, parameters, gradient),
    repeats: repeatsFor(performance.now() - start),
    ...(risen !== undefined && { memory: Math.max(risen - bytesOf(outcome!), 0) }),
  };
  const peak = device === 'cpu' ? { peak: () => binding.measurePeak() } : {}; // 'auto' may be a GPU
  return { reply, run: () => subject.call(), ...peak };
}
