/**
 * Synthetic queries, keys and values. How well a clustered attention does depends on the data, so
 * there are three kinds; all have elements of about unit variance. docs/benchmark.md describes them.
 */
import { normals, uniforms } from './random';
import type { Problem } from './record';

export const DISTRIBUTIONS = ['gaussian', 'mixture', 'local'] as const;
export type Distribution = (typeof DISTRIBUTIONS)[number];

/** Query, key and value, (B,H,L,D), (B,H,S,D), (B,H,S,E). */
export interface Tensors {
  readonly query: Float32Array;
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** Groups of the mixture, as many for every length. */
const GROUPS = 64;
/** Standard deviation of the centres and, at right angles, of the rest: 0.9² + 0.436² = 1. */
const SPREAD = 0.9;
const REST = Math.sqrt(1 - SPREAD ** 2);
/** Dimensions of the hidden walk, its correlation from token to token, the share of noise. */
const RANK = 16;
const CORRELATION = 0.98;
const NOISE = 0.3;

type Fill = (target: Float32Array, offset: number, length: number, dim: number) => void;

/** Every element N(0,1): there are no groups to find, the worst case of clustering. */
function gaussian(next: () => number): () => Fill {
  return () => (target, offset, length, dim) => {
    const end = offset + length * dim;
    for (let i = offset; i < end; ++i) target[i] = next();
  };
}

/** Each token belongs to one of 64 groups; queries and keys of a group share a centre. */
function mixture(next: () => number, uniform: () => number): () => Fill {
  return () => {
    const centres: number[] = [];
    return (target, offset, length, dim) => {
      while (centres.length < GROUPS * dim) centres.push(SPREAD * next());
      for (let row = 0; row < length; ++row) {
        const centre = Math.floor(uniform() * GROUPS) * dim;
        const place = offset + row * dim;
        for (let d = 0; d < dim; ++d) target[place + d] = centres[centre + d]! + REST * next();
      }
    };
  };
}

/**
 * Rows are a fixed linear image of a hidden state in 16 dimensions that drifts from token to token,
 * plus noise: low rank, and neighbours resemble each other, as the tokens of texts, pictures and
 * sounds do. Queries and keys of a head see the same walk.
 */
function local(next: () => number): () => Fill {
  return () => {
    const walk: number[] = [];
    const image: number[] = [];
    const kept = Math.sqrt(1 - NOISE ** 2) / Math.sqrt(RANK);
    const innovation = Math.sqrt(1 - CORRELATION ** 2);
    return (target, offset, length, dim) => {
      while (image.length < dim * RANK) image.push(kept * next());
      while (walk.length < length * RANK) {
        const before = walk.length - RANK;
        const step = next();
        walk.push(before < 0 ? step : CORRELATION * walk[before]! + innovation * step);
      }
      for (let row = 0; row < length; ++row) {
        for (let d = 0; d < dim; ++d) {
          let sum = 0;
          for (let r = 0; r < RANK; ++r) sum += image[d * RANK + r]! * walk[row * RANK + r]!;
          target[offset + row * dim + d] = sum + NOISE * next();
        }
      }
    };
  };
}

/** Synthetic inputs: the same numbers for the same arguments, on every machine. */
export function drawTensors(distribution: Distribution, problem: Problem, seed: number): Tensors {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem;
  const next = normals(seed);
  const makers = { gaussian, mixture, local };
  const newHead = makers[distribution](next, uniforms(seed + 1));
  const sequences = batch * heads;
  const query = new Float32Array(sequences * queryLength * headDim);
  const key = new Float32Array(sequences * keyLength * headDim);
  const value = new Float32Array(sequences * keyLength * valueDim);
  const plain = gaussian(next)();
  for (let head = 0; head < sequences; ++head) {
    const fill = newHead();
    fill(query, head * queryLength * headDim, queryLength, headDim);
    fill(key, head * keyLength * headDim, keyLength, headDim);
    plain(value, head * keyLength * valueDim, keyLength, valueDim);
  }
  return { query, key, value };
}
