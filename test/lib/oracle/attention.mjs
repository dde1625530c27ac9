// Exact, clustered and improved clustered attention. Labels and top-k indices come in ready; the
// functions that make these choices stand beside them.

import {
  addScaled,
  bestFirst,
  dot,
  eachSequence,
  fullShape,
  logSumExp,
  softmax,
  weightedSum,
} from './rows.mjs';

const defaultScale = (options) => options.scale ?? 1 / Math.sqrt(options.shape.headDim);

/** O = softmax(τ Q Kᵀ + mask) V, with the log-sum-exp of every row. */
export function attention(options) {
  const { batch, heads, queryLength, valueDim } = fullShape(options.shape);
  const scale = defaultScale(options);
  const output = new Float64Array(batch * heads * queryLength * valueDim);
  const logsumexp = new Float64Array(batch * heads * queryLength).fill(-Infinity);
  eachSequence(options, ({ firstQuery, query, key, value }) => {
    query.forEach((row, l) => {
      const last = options.causal ? l + key.length - query.length : key.length - 1;
      const logits = key.slice(0, Math.max(0, last + 1)).map((k) => scale * dot(row, k));
      const seen = value.slice(0, logits.length);
      output.set(weightedSum(softmax(logits), seen, valueDim), (firstQuery + l) * valueDim);
      logsumexp[firstQuery + l] = logSumExp(logits);
    });
  });
  return { output, logsumexp };
}

/** Mean query of every cluster, undefined for an empty one. */
function clusterMeans(query, labelOf, clusters) {
  const members = Array.from({ length: clusters }, () => []);
  query.forEach((row, l) => labelOf(l) >= 0 && members[labelOf(l)].push(row));
  return members.map((rows) =>
    rows.length === 0
      ? undefined
      : weightedSum(
          rows.map(() => 1 / rows.length),
          rows,
          rows[0].length,
        ),
  );
}

/** The keys of list number `list` of indices (lists,k) with −1 for none. */
const chosenKeys = (indices, list, k) =>
  Array.from(indices.subarray(list * k, (list + 1) * k)).filter((t) => t >= 0);
const sumOf = (chosen, weights) => chosen.reduce((sum, t) => sum + weights[t], 0);

/** What every cluster gives to its top keys, (B·H·C), for given labels and indices. */
export function topMasses(options) {
  const { indices } = options;
  const scale = defaultScale(options);
  const scores = clusterScores(options);
  return scores.map((list, j) => {
    const chosen = chosenKeys(indices, j, indices.length / scores.length);
    return list ? sumOf(chosen, softmax(list.map((score) => scale * score))) : 0;
  });
}

/**
 * Clustered attention for given labels (B,H,L); the improved form where top-k keys are given too,
 * indices (B,H,C,k) with −1 for none. `masses` (B,H,C) take the place of what the clusters give to
 * those keys.
 */
export function clusteredAttention(options) {
  const { batch, heads, queryLength, valueDim } = fullShape(options.shape);
  const { labels, indices, clusters, masses } = options;
  const scale = defaultScale(options);
  const output = new Float64Array(batch * heads * queryLength * valueDim);
  const k = indices ? indices.length / (batch * heads * clusters) : 0;
  eachSequence(options, ({ number, firstQuery, query, key, value }) => {
    const labelOf = (l) => labels[firstQuery + l];
    const weights = clusterMeans(query, labelOf, clusters).map(
      (mean) => mean && softmax(key.map((row) => scale * dot(mean, row))),
    );
    query.forEach((row, l) => {
      const cluster = labelOf(l);
      if (cluster < 0) return;
      const shared = weights[cluster];
      const result = weightedSum(shared, value, valueDim);
      if (indices) {
        const chosen = chosenKeys(indices, number * clusters + cluster, k);
        const mass = masses ? masses[number * clusters + cluster] : sumOf(chosen, shared);
        const own = softmax(chosen.map((t) => scale * dot(row, key[t])));
        chosen.forEach((t, n) => addScaled(result, mass * own[n] - shared[t], value[t]));
      }
      output.set(result, (firstQuery + l) * valueDim);
    });
  });
  return { output };
}

/** q̄_j·k_s of every sequence and cluster, (B·H·C) lists over the real keys; empty: undefined. */
export function clusterScores(options) {
  const { labels, clusters } = options;
  const scores = [];
  eachSequence(options, ({ firstQuery, query, key }) => {
    for (const mean of clusterMeans(query, (l) => labels[firstQuery + l], clusters)) {
      scores.push(mean && key.map((row) => dot(mean, row)));
    }
  });
  return scores;
}

/**
 * T_j: the min(k, real keys) best keys of every cluster by q̄_j·k, best first, −1 beyond; an empty
 * cluster chooses nothing.
 */
export function chooseTopKeys(options) {
  const k = Math.min(options.topK, fullShape(options.shape).keyLength);
  const scores = clusterScores(options);
  const indices = new Int32Array(scores.length * k).fill(-1);
  scores.forEach((list, j) => list && indices.set(bestFirst(list, k), j * k));
  return indices;
}

/** Members of every cluster, (B,H,C), from labels (B,H,L). */
export function countLabels(labels, sequences, clusters) {
  const counts = new Int32Array(sequences * clusters);
  const length = labels.length / sequences;
  labels.forEach((label, i) => {
    if (label >= 0) counts[Math.floor(i / length) * clusters + label] += 1;
  });
  return counts;
}

/**
 * Rows of the attention matrices that clustered and improved clustered attention stand for, (L,S)
 * per sequence: obtained by feeding the identity as values.
 */
export function attentionMatrix(operation, options) {
  const shape = fullShape(options.shape);
  const { batch, heads, keyLength } = shape;
  const identity = new Float32Array(batch * heads * keyLength * keyLength);
  for (let sequence = 0; sequence < batch * heads; ++sequence) {
    for (let s = 0; s < keyLength; ++s) identity[(sequence * keyLength + s) * keyLength + s] = 1;
  }
  const { output } = operation({
    ...options,
    value: identity,
    shape: { ...shape, valueDim: keyLength },
  });
  return output;
}
