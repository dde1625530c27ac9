/** From the command line to what is measured: the options that `bench` and `tune` share. */
import { totalmem } from 'node:os';
import { getNumThreads, MAXIMUM_THREADS } from '../threads';
import type { Arguments } from './arguments';
import { DISTRIBUTIONS } from './distributions';
import { type InputFile, inspectInputs } from './inputs';
import { formatMemory } from './labels';
import { tensorBytes } from './memory';
import { METHODS, type MethodName } from './methods';
import type { Selection, Settings } from './plan';
import type { Problem } from './record';
import { visible } from './terminal';
import { UsageError } from './usage';

const LARGEST = 2 ** 31 - 1;
const GROUPINGS = ['hamming', 'euclidean'] as const;
const THRESHOLDS = ['normal', 'data'] as const;

/** Options with a value that say what the inputs are. */
export const SOURCE_OPTIONS = [
  'input',
  'names',
  'distribution',
  'length',
  'queries',
  'batch',
  'heads',
  'dim',
  'value-dim',
  'seed',
] as const;

export const METHOD_OPTIONS = [
  'methods',
  'clusters',
  'topk',
  'grouping',
  'threshold',
  'bits',
  'iterations',
  'centroids',
  'cluster-size',
  'exact-up-to',
] as const;

/** Options with a value that say how it is measured, and where the results go. */
export const RUN_OPTIONS = [
  'threads',
  'device',
  'precision',
  'rounds',
  'budget',
  'rows',
  'json',
  'report',
] as const;

export const FLAGS = ['grad'] as const;

function checkMemory(problem: Problem): void {
  const { batch, heads, keyLength, headDim } = problem;
  const bytes = tensorBytes(problem);
  if (2 * bytes <= totalmem()) return;
  throw new UsageError(
    `impossible sizes: inputs and outputs of B=${batch} H=${heads} N=${keyLength} D=${headDim} ` +
      `take ${formatMemory(bytes)}, this machine has ${formatMemory(totalmem())}`,
  );
}

function syntheticProblems(options: Arguments): Problem[] {
  const batch = options.integer('batch', 1, LARGEST, 1);
  const heads = options.integer('heads', 1, LARGEST, 8);
  const headDim = options.integer('dim', 1, 65_536, 64);
  const valueDim = options.integer('value-dim', 1, 65_536, headDim);
  const lengths = options.integers('length', 1, LARGEST, [1024, 4096]);
  return lengths.map((length) => {
    const queryLength = options.integer('queries', 1, LARGEST, length);
    const problem = { batch, heads, queryLength, keyLength: length, headDim, valueDim };
    checkMemory(problem);
    return problem;
  });
}

function inputFile(options: Arguments, path: string): InputFile {
  for (const name of ['distribution', 'length', 'queries', 'batch', 'heads', 'dim', 'value-dim']) {
    if (options.has(name)) throw new UsageError(`--${name} has no meaning beside --input`);
  }
  const names = (options.text('names') ?? 'query,key,value').split(',').map((name) => name.trim());
  if (names.length !== 3 || names.includes('')) {
    throw new UsageError('--names expects three names: query,key,value');
  }
  return { path, names: names as unknown as InputFile['names'] };
}

/** Where the tensors come from and how large they are. */
export function readSource(options: Arguments): Pick<Selection, 'problems' | 'source' | 'data'> {
  const path = options.text('input');
  if (path !== undefined) {
    const source = inputFile(options, path);
    const problem = inspectInputs(source);
    checkMemory(problem);
    return { problems: [problem], source, data: visible(path.split(/[\\/]/).at(-1)!) };
  }
  if (options.has('names')) throw new UsageError('--names has no meaning without --input');
  const source = options.choice('distribution', DISTRIBUTIONS, 'gaussian');
  return { problems: syntheticProblems(options), source, data: source };
}

function readDevice(options: Arguments): string {
  const device = options.text('device') ?? 'cpu';
  if (!/^(cpu|auto|cuda|cuda:\d+)$/.test(device)) {
    throw new UsageError(`unknown --device "${device}", expected cpu, auto, cuda or cuda:0`);
  }
  return device;
}

/** The lists of parameters; what is not given is left to the package, or 100 clusters, 32 keys. */
function readParameters(options: Arguments): Selection['parameters'] {
  const optional = (name: string, least: number, most: number): readonly (number | undefined)[] =>
    options.has(name) ? options.integers(name, least, most, []) : [undefined];
  return {
    clusters: options.integers('clusters', 1, LARGEST, [100]),
    topK: options.integers('topk', 1, LARGEST, [32]),
    grouping: options.choices<(typeof GROUPINGS)[number]>('grouping', GROUPINGS, ['hamming']),
    threshold: options.choices<(typeof THRESHOLDS)[number]>('threshold', THRESHOLDS, ['normal']),
    bits: optional('bits', 1, 64) as readonly number[],
    iterations: optional('iterations', 0, 1000) as readonly number[],
    centroids: options.integers('centroids', 1, LARGEST, [64]),
    clusterSize: options.integers('cluster-size', 1, LARGEST, [256]),
  };
}

/** Device, precision, threads and gradients. */
export function readConditions(
  options: Arguments,
): Pick<Selection, 'threads' | 'device' | 'precision' | 'gradient'> {
  return {
    threads: options.integers('threads', 1, MAXIMUM_THREADS, [getNumThreads()]),
    device: readDevice(options),
    precision: options.choice('precision', ['float32', 'bfloat16'], 'float32'),
    gradient: options.flag('grad'),
  };
}

export function readSelection(options: Arguments): Selection {
  const names = Object.keys(METHODS) as MethodName[];
  return {
    ...readSource(options),
    ...readConditions(options),
    methods: options.choices('methods', names, names),
    parameters: readParameters(options),
    exactUpTo: options.integer('exact-up-to', 0, LARGEST, 16_384),
  };
}

export function readSettings(options: Arguments): Settings {
  return {
    rounds: options.integer('rounds', 3, 1000, 9),
    budget: options.integer('budget', 1, 86_400, 10),
    rows: options.integer('rows', 1, 65_536, 64),
    recallKeys: Math.max(...options.integers('topk', 1, LARGEST, [32])),
    seed: options.integer('seed', 0, LARGEST, 0),
  };
}
