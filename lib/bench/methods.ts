/** The methods that can be measured: how each is called, and what it should give. */
import * as library from '../index';
import { castWeights } from './cast-weights';
import type { Inputs } from './inputs';
import {
  clusteredQueryGradient,
  exactQueryGradient,
  improvedQueryGradient,
} from './query-gradients';
import { gaussianArray } from './random';
import type { Case, Parameters, Problem } from './record';
import {
  centroidNormalizers,
  centroidWeights,
  clusteredWeights,
  exactWeights,
  improvedWeights,
  type Row,
} from './weights';

/** The options of a call of the package. */
export type CallOptions = Readonly<Record<string, unknown>>;

/** The rows of a result in double precision, from the discrete choices that the call made. */
export interface Rows {
  weights(row: Row): Float64Array;
  /** The gradient by the query; absent where it is not checked row by row. */
  queryGradient?(gradOutput: Float32Array, row: Row): Float64Array;
}

export interface Method {
  /** Operation of the package; `…Sync` and `…VjpSync` are called. */
  readonly operation: string;
  /** The parameters that it has. */
  readonly parameters: readonly (keyof Parameters)[];
  /** Whether its weights stand for those of exact attention. */
  readonly approximates: boolean;
  /** How many rows of different sequences may be checked; each sequence costs this one much. */
  readonly sequences: number;
  options(inputs: Inputs, parameters: Parameters, seed: number): CallOptions;
  /** `details`: what the call with `details: true` returned. */
  define(inputs: Inputs, options: CallOptions, details: CallOptions): Rows;
}

const clusteredOptions = (inputs: Inputs, parameters: Parameters, seed: number): CallOptions => ({
  ...attentionOptions(inputs),
  ...parameters,
  seed,
});

function attentionOptions({ problem, query, key, value }: Inputs): CallOptions {
  return { query, key, value, shape: problem };
}

/** Strided means of the queries: row j is the mean of rows [⌊jL/M⌋, ⌊(j+1)L/M⌋). */
function stridedMeans({ problem, query }: Inputs, count: number): Float32Array {
  const { batch, heads, queryLength, headDim } = problem;
  const means = new Float32Array(batch * heads * count * headDim);
  for (let row = 0; row < batch * heads * count; ++row) {
    const [sequence, j] = [Math.floor(row / count), row % count];
    const first = Math.floor((j * queryLength) / count);
    const end = Math.floor(((j + 1) * queryLength) / count);
    for (let l = first; l < end; ++l) {
      const place = (sequence * queryLength + l) * headDim;
      for (let d = 0; d < headDim; ++d) {
        means[row * headDim + d]! += query[place + d]! / (end - first);
      }
    }
  }
  return means;
}

function centroidOptions(inputs: Inputs, { centroids = 1 }: Parameters): CallOptions {
  const count = Math.min(centroids, inputs.problem.queryLength);
  const shape: Problem = { ...inputs.problem, queryLength: count };
  return { ...attentionOptions(inputs), query: stridedMeans(inputs, count), shape };
}

function castOptions(inputs: Inputs, parameters: Parameters, seed: number): CallOptions {
  const { batch, heads, queryLength, headDim } = inputs.problem;
  const { clusters = 1 } = parameters;
  return {
    ...attentionOptions(inputs),
    ...parameters,
    surrogates: gaussianArray(heads * clusters * headDim, seed + 2),
    gate: gaussianArray(batch * queryLength, seed + 3),
  };
}

/** What the clustered attentions return beside the output. */
interface Choices {
  readonly labels: Int32Array;
  readonly indices: Int32Array;
}

function improvedDefinition(inputs: Inputs, options: CallOptions, details: CallOptions) {
  const { labels, indices } = details as unknown as Choices;
  const { clusters, topK } = options as { clusters: number; topK: number };
  const lists = { indices, clusters, topK: Math.min(topK, inputs.problem.keyLength) };
  return {
    weights: (row: Row) => improvedWeights(inputs, labels, lists, row),
    queryGradient: (gradOutput: Float32Array, row: Row) =>
      improvedQueryGradient(inputs, labels, lists, gradOutput, row),
  };
}

function centroidDefinition(inputs: Inputs, options: CallOptions): Rows {
  const query = options.query as Float32Array;
  const { headDim, queryLength: count } = options.shape as Problem;
  const normalizers = new Map<number, Float64Array>();
  return {
    weights({ sequence, query: j }) {
      const known =
        normalizers.get(sequence) ?? centroidNormalizers(inputs, query, count, sequence);
      normalizers.set(sequence, known);
      const place = (sequence * count + j) * headDim;
      return centroidWeights(inputs, query.subarray(place, place + headDim), known, sequence);
    },
  };
}

const GROUPING = ['clusters', 'grouping', 'threshold', 'bits', 'iterations'] as const;

export const METHODS = {
  exact: {
    operation: 'attention',
    parameters: [],
    approximates: true,
    sequences: Infinity,
    options: attentionOptions,
    define: (inputs) => ({
      weights: (row) => exactWeights(inputs, row),
      queryGradient: (gradOutput, row) => exactQueryGradient(inputs, gradOutput, row),
    }),
  },
  clustered: {
    operation: 'clusteredAttention',
    parameters: GROUPING,
    approximates: true,
    sequences: Infinity,
    options: clusteredOptions,
    define: (inputs, _, details) => {
      const { labels } = details as unknown as Choices;
      return {
        weights: (row) => clusteredWeights(inputs, labels, row),
        queryGradient: (gradOutput, row) => clusteredQueryGradient(inputs, labels, gradOutput, row),
      };
    },
  },
  improved: {
    operation: 'improvedClusteredAttention',
    parameters: [...GROUPING, 'topK'],
    approximates: true,
    sequences: Infinity,
    options: clusteredOptions,
    define: improvedDefinition,
  },
  centroid: {
    operation: 'centroidAttention',
    parameters: ['centroids'],
    approximates: false,
    sequences: 1,
    options: centroidOptions,
    define: centroidDefinition,
  },
  cast: {
    operation: 'castAttention',
    parameters: ['clusters', 'clusterSize'],
    approximates: false,
    sequences: Infinity,
    options: castOptions,
    define: (inputs, options, { indices }) => {
      const { surrogates, gate, clusters } = options as {
        surrogates: Float32Array;
        gate: Float32Array;
        clusters: number;
      };
      const clusterSize = Math.min(options.clusterSize as number, inputs.problem.keyLength);
      const state = { surrogates, gate, clusters, clusterSize, indices: indices as Int32Array };
      return { weights: (row) => castWeights(inputs, state, row) };
    },
  },
} satisfies Record<string, Method>;

export type MethodName = keyof typeof METHODS;

export const isMethod = (name: string): name is MethodName => Object.hasOwn(METHODS, name);

export const methodOf = (name: string): Method => METHODS[name as MethodName];

export type Run = (options: CallOptions) => unknown;

const exported = library as unknown as Readonly<Record<string, Run | undefined>>;

/** The synchronous form of an operation, undefined when this version has none. */
export function syncForm(operation: string, gradient: boolean): Run | undefined {
  return exported[`${operation}${gradient ? 'Vjp' : ''}Sync`];
}

/** The options that every call of a case gets. */
export function callSettings({
  device,
  precision,
}: Pick<Case, 'device' | 'precision'>): CallOptions {
  return { device, precision };
}
