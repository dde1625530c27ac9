/**
 * Rows of the attention matrices in double precision, one row at a time: exact attention, and what
 * the approximations put in its place, given the groups, keys and tokens that they chose. A row
 * costs O(S·D), so a sample of rows can be checked at any length. Written beside the formulas of
 * the papers, and independent of the native code.
 */
import type { Inputs } from './inputs';

/** A row of the output: which sequence (batch and head as one), which query. */
export interface Row {
  readonly sequence: number;
  readonly query: number;
}

/** τ = 1/√D */
export const scaleOf = ({ problem }: Inputs): number => 1 / Math.sqrt(problem.headDim);

/** x·rows[first + i] for `count` rows of `matrix`. */
export function products(
  x: ArrayLike<number>,
  matrix: Float32Array,
  first: number,
  count: number,
): Float64Array {
  const dim = x.length;
  const result = new Float64Array(count);
  for (let row = 0, place = first * dim; row < count; ++row) {
    let sum = 0;
    for (let d = 0; d < dim; ++d) sum += x[d]! * matrix[place++]!;
    result[row] = sum;
  }
  return result;
}

/** exp(scale·x − max) over its sum, in place. */
export function softmax(scores: Float64Array, scale = 1): Float64Array {
  let maximum = -Infinity;
  for (const score of scores) maximum = Math.max(maximum, scale * score);
  let sum = 0;
  for (let i = 0; i < scores.length; ++i) {
    scores[i] = Math.exp(scale * scores[i]! - maximum);
    sum += scores[i]!;
  }
  for (let i = 0; i < scores.length; ++i) scores[i]! /= sum;
  return scores;
}

/** Σ_s weights[s]·value[s] over the keys of a sequence. */
export function weightedValues(
  { problem, value }: Inputs,
  sequence: number,
  weights: Float64Array,
): Float64Array {
  const { keyLength, valueDim } = problem;
  const result = new Float64Array(valueDim);
  for (let s = 0, place = sequence * keyLength * valueDim; s < keyLength; ++s) {
    const weight = weights[s]!;
    if (weight === 0) place += valueDim;
    else for (let e = 0; e < valueDim; ++e) result[e]! += weight * value[place++]!;
  }
  return result;
}

export function queryRow({ problem, query }: Inputs, { sequence, query: index }: Row) {
  const { queryLength, headDim } = problem;
  const place = (sequence * queryLength + index) * headDim;
  return query.subarray(place, place + headDim);
}

/** x·k_s for all keys of a sequence. */
export function keyProducts(inputs: Inputs, sequence: number, x: ArrayLike<number>): Float64Array {
  const { keyLength } = inputs.problem;
  return products(x, inputs.key, sequence * keyLength, keyLength);
}

/** A_i = softmax(τ q_i Kᵀ). */
export function exactWeights(inputs: Inputs, row: Row): Float64Array {
  return softmax(keyProducts(inputs, row.sequence, queryRow(inputs, row)), scaleOf(inputs));
}

/** The cluster of a query, its members, and the mean of their queries. */
export function clusterOf(inputs: Inputs, labels: Int32Array, { sequence, query }: Row) {
  const { queryLength, headDim } = inputs.problem;
  const label = labels[sequence * queryLength + query]!;
  const members: number[] = [];
  const mean = new Float64Array(headDim);
  for (let l = 0; l < queryLength; ++l) {
    if (labels[sequence * queryLength + l] !== label) continue;
    members.push(l);
    const place = (sequence * queryLength + l) * headDim;
    for (let d = 0; d < headDim; ++d) mean[d]! += inputs.query[place + d]!;
  }
  for (let d = 0; d < headDim; ++d) mean[d]! /= members.length;
  return { label, members, mean };
}

/** A^c of the query's cluster: softmax(τ q̄ Kᵀ). */
export function clusteredWeights(inputs: Inputs, labels: Int32Array, row: Row): Float64Array {
  const { mean } = clusterOf(inputs, labels, row);
  return softmax(keyProducts(inputs, row.sequence, mean), scaleOf(inputs));
}

/** The keys listed for a cluster, without the empty places. */
export function listOf(indices: Int32Array, list: number, size: number): Int32Array {
  return indices.subarray(list * size, (list + 1) * size).filter((index) => index >= 0);
}

/** p_it: softmax of τ q_i·k_t over the listed keys. */
export function weightsAmong(inputs: Inputs, row: Row, keys: Int32Array): Float64Array {
  const { keyLength } = inputs.problem;
  const query = queryRow(inputs, row);
  const scores = Float64Array.from(
    keys,
    (key) => products(query, inputs.key, row.sequence * keyLength + key, 1)[0]!,
  );
  return softmax(scores, scaleOf(inputs));
}

/** m̂ p_it on the top keys of the cluster, A^c elsewhere. */
export function improvedWeights(
  inputs: Inputs,
  labels: Int32Array,
  { indices, clusters, topK }: { indices: Int32Array; clusters: number; topK: number },
  row: Row,
): Float64Array {
  const { label, mean } = clusterOf(inputs, labels, row);
  const weights = softmax(keyProducts(inputs, row.sequence, mean), scaleOf(inputs));
  const keys = listOf(indices, row.sequence * clusters + label, topK);
  let mass = 0;
  for (const key of keys) mass += weights[key]!;
  const among = weightsAmong(inputs, row, keys);
  keys.forEach((key, t) => {
    weights[key] = mass * among[t]!;
  });
  return weights;
}

/** Centroid attention: log Σ_j exp(τ q_j·k_i) of every input of one sequence. */
export function centroidNormalizers(
  inputs: Inputs,
  centroids: Float32Array,
  count: number,
  sequence: number,
): Float64Array {
  const { keyLength, headDim } = inputs.problem;
  const scale = scaleOf(inputs);
  return Float64Array.from({ length: keyLength }, (_, i) => {
    const place = (sequence * keyLength + i) * headDim;
    const key = inputs.key.subarray(place, place + headDim);
    const scores = products(key, centroids, sequence * count, count);
    let maximum = -Infinity;
    for (const score of scores) maximum = Math.max(maximum, scale * score);
    let sum = 0;
    for (const score of scores) sum += Math.exp(scale * score - maximum);
    return maximum + Math.log(sum);
  });
}

/** a_ji = exp(τ q_j·k_i) / Σ_j' exp(τ q_j'·k_i) over the inputs i, for one centroid j. */
export function centroidWeights(
  inputs: Inputs,
  centroid: Float32Array,
  normalizers: Float64Array,
  sequence: number,
): Float64Array {
  const scale = scaleOf(inputs);
  return keyProducts(inputs, sequence, centroid).map((score, i) =>
    Math.exp(scale * score - normalizers[i]!),
  );
}
