/** Loads the native addon and states what it offers. */
import { join } from 'node:path';
import { type Addon, explain, loadAddon } from './addon';
import { bindingLoad, type Failure } from './errors';

/** What a native operation reads: plain values and arrays, see native/binding/decode.h. */
export type Request = Readonly<Record<string, unknown>>;

/** The operations of the addon, each with a twin `…Async` that returns a promise. */
export type NativeOperation =
  | 'attention'
  | 'clustered'
  | 'centroidAttention'
  | 'castAttention'
  | 'centroidPool'
  | 'centroidEncode'
  | 'lshPlanes'
  | 'hash'
  | 'hammingKMeans'
  | 'kMeans'
  | 'aggregate'
  | 'broadcast'
  | 'topK'
  | 'sparseDot'
  | 'sparseWeightedSum'
  | 'matmul'
  | 'attentionGradient'
  | 'clusteredGradient'
  | 'centroidAttentionGradient'
  | 'castAttentionGradient'
  | 'centroidPoolGradient'
  | 'centroidEncodeGradient'
  | 'aggregateGradient'
  | 'broadcastGradient'
  | 'sparseDotGradient'
  | 'sparseWeightedSumGradient'
  | 'upload'
  | 'download'
  | 'probe';

/** undefined when the call succeeded. */
export type Outcome = Failure | undefined;

export type Binding = {
  readonly [Name in NativeOperation]: (request: Request) => Outcome;
} & {
  readonly [Name in NativeOperation as `${Name}Async`]: (request: Request) => Promise<Outcome>;
} & {
  info(): { version: string; found: string; used: string };
  getNumThreads(): number;
  setNumThreads(request: { threads: number }): void;
  /** The number of new device memory, or why there is none. */
  allocate(request: { device: number; type: number; elements: number }): number | Failure;
  release(request: { memory: number }): void;
  cudaInfo(): CudaDescription;
  /** GFLOP/s of multiply-adds in registers, over the threads set. */
  measurePeak(): number;
};

/** What the native code knows of CUDA; texts and numbers that say nothing are '' and 0. */
export interface CudaDescription {
  reason: string;
  /** "80,90a" */
  targets: string;
  /** 13000 is 13.0 */
  runtime: number;
  driver: number;
  devices: {
    name: string;
    major: number;
    minor: number;
    multiprocessors: number;
    memory: number;
    reason: string;
  }[];
}

// Enumerations travel as numbers: the order in native/core/problem.h, settings.h and tensor.h.
export const Layout = { BHLD: 0, BLHD: 1 } as const;
export const NonFinite = { error: 0, propagate: 1 } as const;
export const Precision = { float32: 0, bfloat16: 1 } as const;
export const Grouping = { hamming: 0, euclidean: 1, given: 2 } as const;
export const Threshold = { normal: 0, data: 1 } as const;
export const Normalize = { centroids: 0, inputs: 1 } as const;
export const Collect = { sum: 0, mean: 1 } as const;
export const Similarity = { cosine: 0, dot: 1, euclidean: 2 } as const;
export const PoolStart = {
  stride: 0,
  'kmeans++': 1,
  farthest: 2,
  sample: 3,
  given: 4,
} as const;
export const KMeansStart = { 'kmeans++': 0, sample: 1, given: 2 } as const;
export const Metric = { euclidean: 0, cosine: 1 } as const;
export const Reduce = { mean: 0, sum: 1 } as const;
export const Selection = { topK: 0, singleAssignment: 1, given: 2 } as const;
export const Activation = { softmax: 0, laplace: 1 } as const;

// And in cuda/backend.h and native/dispatch_device.h.
export const Storage = { float32: 0, bfloat16: 1 } as const;
export const DeviceType = { float32: 0, bfloat16: 1, int32: 2, uint64: 3, float64: 4 } as const;

const root = join(__dirname, '..');

function load(): Addon {
  const found = loadAddon(root);
  if (!Array.isArray(found)) return found;
  const last = found.findLast(({ cause }) => cause !== undefined);
  throw bindingLoad(explain(root, found), last?.cause);
}

const addon = load();
/** Path of the addon in use. */
export const bindingFile = addon.file;
export const binding = addon.exports as Binding;
