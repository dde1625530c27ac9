// CAST: the score of tokens for clusters, the two selections, and the attention for given indices.

import { addScaled, bestFirst, dot, eachSequence, rowsAt, softmax } from './rows.mjs';

/** The error function: its Taylor series near 0, a continued fraction in the tails. */
export function erf(x) {
  if (x < 0) return -erf(-x);
  if (x < 3) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); ++n) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = 0;
  for (let n = 60; n >= 1; --n) fraction = n / 2 / (x + fraction);
  return 1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

// The constants as the definition gives them, not the roots that they round.
// oxlint-disable-next-line oxc/approx-constant
const laplace = (x) => 0.5 * (1 + erf((x - 0.707107) / (0.282095 * Math.SQRT2)));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus1 = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) + 1;
const activate = (logits, activation) =>
  activation === 'laplace' ? logits.map(laplace) : softmax(logits);

/** Calls visit(b, heads) per batch entry, with the real rows of every head. */
function eachBatch(options, visit) {
  const byBatch = [];
  const { keyLengths } = options;
  const self = { ...options, queryLengths: keyLengths };
  eachSequence(self, (sequence) => (byBatch[sequence.batch] ??= []).push(sequence));
  byBatch.forEach((heads, b) => visit(b, heads));
}

/** A_g, [b][n][c]: how well token n fits cluster c. */
export function affinity(options) {
  const { heads, headDim, queryLength } = options.shape;
  const { clusters, surrogates, gate, activation } = options;
  const tokens = [];
  eachBatch(options, (b, sequences) => {
    const rows = rowsAt(surrogates, 0, heads * clusters, headDim);
    const sums = (rowsOf, n) =>
      Array.from({ length: clusters }, (_, c) =>
        sequences.reduce((sum, head, h) => sum + dot(rowsOf(head)[n], rows[h * clusters + c]), 0),
      );
    tokens[b] = sequences[0].query.map((_, n) => {
      const open = sigmoid(gate[b * queryLength + n]);
      const byQuery = activate(
        sums((s) => s.query, n),
        activation,
      );
      const byKey = activate(
        sums((s) => s.key, n),
        activation,
      );
      return byQuery.map((score, c) => open * score + (1 - open) * byKey[c]);
    });
  });
  return tokens;
}

/** Top-K: each cluster takes the best tokens of its column. (B,C,κ) */
export function selectTopK(scores, clusters, clusterSize) {
  const indices = new Int32Array(scores.length * clusters * clusterSize).fill(-1);
  scores.forEach((tokens, b) => {
    for (let c = 0; c < clusters; ++c) {
      const chosen = bestFirst(
        tokens.map((row) => row[c]),
        clusterSize,
      );
      indices.set(chosen, (b * clusters + c) * clusterSize);
    }
  });
  return indices;
}

/** Single assignment: tokens by descending best score, each to its best cluster with room. */
export function selectSingle(scores, clusters, clusterSize) {
  const indices = new Int32Array(scores.length * clusters * clusterSize).fill(-1);
  scores.forEach((tokens, b) => {
    const filled = Array.from({ length: clusters }, () => 0);
    for (const token of bestFirst(tokens.map((row) => Math.max(...row)))) {
      const cluster = bestFirst(tokens[token]).find((c) => filled[c] < clusterSize);
      indices[(b * clusters + cluster) * clusterSize + filled[cluster]++] = token;
    }
  });
  return indices;
}

/** Steps 4 to 7 for given indices (B,C,κ), −1 for an empty slot. */
export function castAttention(options) {
  const { batch, heads, queryLength, headDim } = options.shape;
  const valueDim = options.shape.valueDim ?? headDim;
  const { clusters, indices, surrogates, gate, activation } = options;
  const clusterSize = indices.length / (batch * clusters);
  const output = new Float64Array(batch * heads * queryLength * valueDim);
  const coverage = new Float64Array(batch);
  const scaleFor = (keys) =>
    options.scale ?? (activation === 'laplace' ? 1 / keys : 1 / Math.sqrt(headDim));

  eachBatch(options, (b, sequences) => {
    const count = sequences[0].key.length;
    const phi = gate.subarray(b * queryLength, b * queryLength + count);
    const members = Array.from({ length: clusters }, (_, c) => {
      const first = (b * clusters + c) * clusterSize;
      return Array.from(indices.subarray(first, first + clusterSize)).filter(
        (token) => token >= 0 && token < count,
      );
    });
    coverage[b] = count === 0 ? 1 : new Set(members.flat()).size / count;

    for (const { head, firstQuery, query, key, value } of sequences) {
      const surrogate = rowsAt(surrogates, head * clusters, clusters, headDim);
      const row = (n) =>
        output.subarray((firstQuery + n) * valueDim, (firstQuery + n + 1) * valueDim);
      const share = query.map((q, n) =>
        activate(
          surrogate.map((s) => dot(q, s) * softplus1(phi[n]) * scaleFor(clusters)),
          activation,
        ),
      );
      members.forEach((tokens, c) => {
        const scale = scaleFor(tokens.length);
        const inter = activate(
          tokens.map((n) => dot(key[n], surrogate[c]) * softplus1(-phi[n]) * scale),
          activation,
        );
        const summary = new Float64Array(valueDim);
        tokens.forEach((n, slot) => addScaled(summary, inter[slot], value[n]));
        const inside = new Set(tokens);
        for (let n = 0; n < count; ++n) {
          if (!inside.has(n)) addScaled(row(n), share[n][c], summary);
        }
        for (const n of tokens) {
          const logits = tokens.map((other) => dot(query[n], key[other]) * scale);
          const intra = activate(logits, activation);
          tokens.forEach((other, slot) =>
            addScaled(row(n), share[n][c] * intra[slot], value[other]),
          );
        }
      });
    }
  });
  return { output, coverage };
}
