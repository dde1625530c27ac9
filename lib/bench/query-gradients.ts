/**
 * Rows of the gradient by the query, in double precision: of exact attention, and of the clustered
 * ones given their groups and keys (which are constants of the gradient). See weights.ts.
 */
import type { Inputs } from './inputs';
import {
  clusterOf,
  exactWeights,
  keyProducts,
  listOf,
  products,
  type Row,
  scaleOf,
  softmax,
  weightsAmong,
} from './weights';

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i]! * b[i]!;
  return sum;
};

/** τ Σ_s weights[s] (upstream[s] − mean) k_s, the softmax's part of the chain rule. */
function throughSoftmax(
  inputs: Inputs,
  sequence: number,
  weights: Float64Array,
  upstream: Float64Array,
): Float64Array {
  const { keyLength, headDim } = inputs.problem;
  const mean = dot(weights, upstream);
  const scale = scaleOf(inputs);
  const gradient = new Float64Array(headDim);
  for (let s = 0, place = sequence * keyLength * headDim; s < keyLength; ++s, place += headDim) {
    const factor = scale * weights[s]! * (upstream[s]! - mean);
    if (factor === 0) continue;
    for (let d = 0; d < headDim; ++d) gradient[d]! += factor * inputs.key[place + d]!;
  }
  return gradient;
}

/** x·v_s for all keys of a sequence. */
function valueProducts({ problem, value }: Inputs, sequence: number, x: ArrayLike<number>) {
  return products(x, value, sequence * problem.keyLength, problem.keyLength);
}

function outputRow(inputs: Inputs, gradOutput: Float32Array, { sequence, query }: Row) {
  const { queryLength, valueDim } = inputs.problem;
  const place = (sequence * queryLength + query) * valueDim;
  return gradOutput.subarray(place, place + valueDim);
}

/** dq_i = τ Σ_s A_is (dO_i·v_s − Σ_t A_it dO_i·v_t) k_s */
export function exactQueryGradient(inputs: Inputs, gradOutput: Float32Array, row: Row) {
  const upstream = valueProducts(inputs, row.sequence, outputRow(inputs, gradOutput, row));
  return throughSoftmax(inputs, row.sequence, exactWeights(inputs, row), upstream);
}

/** Σ of gradOutput over the members of a cluster. */
function summedOutput(inputs: Inputs, gradOutput: Float32Array, row: Row, members: number[]) {
  const sum = new Float64Array(inputs.problem.valueDim);
  for (const query of members) {
    outputRow(inputs, gradOutput, { ...row, query }).forEach((x, e) => {
      sum[e]! += x;
    });
  }
  return sum;
}

/** Clustered attention: dq_i = dq̄ / members, the cluster as one query. */
export function clusteredQueryGradient(
  inputs: Inputs,
  labels: Int32Array,
  gradOutput: Float32Array,
  row: Row,
): Float64Array {
  const { members, mean } = clusterOf(inputs, labels, row);
  const weights = softmax(keyProducts(inputs, row.sequence, mean), scaleOf(inputs));
  const sum = summedOutput(inputs, gradOutput, row, members);
  const upstream = valueProducts(inputs, row.sequence, sum);
  return throughSoftmax(inputs, row.sequence, weights, upstream).map((x) => x / members.length);
}

/**
 * Improved clustered attention. Outside T a key's weight A^c_s meets Σ_i dO_i·v_s; inside it only
 * counts towards m̂, which meets Σ_i dO_i·Σ_t p_it v_t. To this comes the query's own softmax over T.
 */
export function improvedQueryGradient(
  inputs: Inputs,
  labels: Int32Array,
  { indices, clusters, topK }: { indices: Int32Array; clusters: number; topK: number },
  gradOutput: Float32Array,
  row: Row,
): Float64Array {
  const { sequence } = row;
  const { label, members, mean } = clusterOf(inputs, labels, row);
  const keys = listOf(indices, sequence * clusters + label, topK);
  const weights = softmax(keyProducts(inputs, sequence, mean), scaleOf(inputs));
  const mass = keys.reduce((sum, key) => sum + weights[key]!, 0);
  /** dO_i·v_t over the keys of T */
  const valuesAmong = (of: Row): Float64Array =>
    Float64Array.from(keys, (key) => {
      const place = sequence * inputs.problem.keyLength + key;
      return products(outputRow(inputs, gradOutput, of), inputs.value, place, 1)[0]!;
    });
  let byMass = 0;
  for (const query of members) {
    const of = { sequence, query };
    byMass += dot(weightsAmong(inputs, of, keys), valuesAmong(of));
  }
  const sum = summedOutput(inputs, gradOutput, row, members);
  const upstream = valueProducts(inputs, sequence, sum);
  for (const key of keys) upstream[key] = byMass;
  const shared = throughSoftmax(inputs, sequence, weights, upstream);

  const own = new Float64Array(weights.length);
  const ownUpstream = new Float64Array(weights.length);
  const among = weightsAmong(inputs, row, keys);
  const values = valuesAmong(row);
  keys.forEach((key, t) => {
    own[key] = among[t]!;
    ownUpstream[key] = mass * values[t]!;
  });
  const direct = throughSoftmax(inputs, sequence, own, ownUpstream);
  return direct.map((x, d) => x + shared[d]! / members.length);
}
