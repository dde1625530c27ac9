// Centroid attention, pooling and encoding.

import {
  addScaled,
  bestOf,
  dot,
  eachSequence,
  fullShape,
  logSumExp,
  multiply,
  rowsAt,
  squaredDistance,
  weightedSum,
} from './rows.mjs';

const EPSILON = 1e-6;

/**
 * a_ji for one sequence: logits[j][i] with −∞ where centroid j may not take input i, and the
 * weight of every input. Also the objective of the sequence.
 */
function assignment(logits, weights, normalize) {
  const inputs = weights.length;
  const a = logits.map((row) => row.map(() => 0));
  let objective = 0;
  const lines = normalize === 'inputs' ? logits.length : inputs;
  for (let line = 0; line < lines; ++line) {
    const logitsOfLine =
      normalize === 'inputs'
        ? logits[line].map((logit, i) =>
            weights[i] > 0 ? logit + Math.log(weights[i]) : -Infinity,
          )
        : logits.map((row) => (weights[line] > 0 ? row[line] : -Infinity));
    const total = logSumExp(logitsOfLine);
    if (total === -Infinity) continue;
    objective += normalize === 'inputs' ? total : weights[line] * total;
    logitsOfLine.forEach((logit, n) => {
      if (logit === -Infinity) return;
      const share = Math.exp(logit - total);
      if (normalize === 'inputs') a[line][n] = share;
      else a[n][line] = weights[line] * share;
    });
  }
  return { a, objective };
}

/** One step for one sequence: Σ_i a_ji v_i, summed or averaged, with the masses and a itself. */
function collect(query, key, value, options) {
  const { scale, normalize = 'centroids', aggregate = 'sum', weights, mayTake, valueDim } = options;
  const logits = query.map((q, j) =>
    key.map((k, i) => (mayTake(j, i) && weights[i] > 0 ? scale * dot(q, k) : -Infinity)),
  );
  const { a, objective } = assignment(logits, weights, normalize);
  const masses = a.map((row) => row.reduce((sum, share) => sum + share, 0));
  const output = a.map((row, j) => {
    const sum = weightedSum(row, value, valueDim);
    return aggregate === 'mean' ? sum.map((x) => x / (masses[j] + EPSILON)) : sum;
  });
  return { a, logits, masses, output, objective };
}

/** mayTake(j, i) for batch b from lists (B,M,K). */
function neighborhood(neighbors, neighborCount, centroids, b) {
  if (!neighbors) return () => true;
  const sets = Array.from({ length: centroids }, (_, j) => {
    const first = (b * centroids + j) * neighborCount;
    return new Set(neighbors.subarray(first, first + neighborCount));
  });
  return (j, i) => sets[j].has(i);
}

const unitWeights = (count) => new Float64Array(count).fill(1);

export function centroidAttention(options) {
  const shape = fullShape(options.shape);
  const { batch, heads, queryLength, keyLength, valueDim } = shape;
  const output = new Float64Array(batch * heads * queryLength * valueDim);
  const labels = new Int32Array(batch * heads * keyLength).fill(-1);
  const masses = new Float64Array(batch * heads * queryLength);
  const objective = new Float64Array(batch);
  eachSequence(options, ({ batch: b, number, firstQuery, query, key, value }) => {
    const weights = options.weights
      ? Float64Array.from(options.weights.subarray(b * keyLength, b * keyLength + key.length))
      : unitWeights(key.length);
    const step = collect(query, key, value, {
      ...options,
      scale: options.scale ?? 1 / Math.sqrt(shape.headDim),
      weights,
      mayTake: neighborhood(options.neighbors, options.neighborCount, queryLength, b),
      valueDim,
    });
    step.output.forEach((row, j) => output.set(row, (firstQuery + j) * valueDim));
    masses.set(step.masses, firstQuery);
    objective[b] += step.objective;
    key.forEach((_row, i) => {
      const allowed = query.some((_centroid, j) => step.logits[j][i] !== -Infinity);
      if (!allowed) return;
      const shares = step.a.map((row, j) => (step.logits[j][i] === -Infinity ? -1 : row[i]));
      labels[number * keyLength + i] = bestOf(shares);
    });
  });
  return { output, labels, masses, objective };
}

/** u⁰ by strided mean: the mean of rows [⌊jN/M⌋, ⌊(j+1)N/M⌋). */
export function strideStart(rows, centroids) {
  return Array.from({ length: centroids }, (_, j) => {
    const begin = Math.floor((j * rows.length) / centroids);
    const part = rows.slice(begin, Math.floor(((j + 1) * rows.length) / centroids));
    return weightedSum(
      part.map(() => 1 / part.length),
      part,
      rows[0].length,
    );
  });
}

/** Row 0, then always the row farthest from its nearest chosen row; tie: the lowest index. */
export function farthestStart(rows, centroids, metric = 'euclidean') {
  const unit = (row) => {
    const length = Math.sqrt(dot(row, row));
    return length === 0 ? row : row.map((x) => x / length);
  };
  const points = metric === 'cosine' ? rows.map(unit) : rows;
  const chosen = [0];
  const gaps = points.map(() => Infinity);
  while (chosen.length < centroids) {
    const last = chosen.at(-1);
    points.forEach((point, i) => {
      gaps[i] = Math.min(gaps[i], squaredDistance(points[last], point));
    });
    gaps[last] = -1;
    chosen.push(bestOf(gaps));
  }
  return chosen.map((index) => rows[index]);
}

const similarities = {
  dot,
  euclidean: (u, x) => -0.5 * squaredDistance(u, x),
  cosine: (u, x) => {
    const lengths = Math.sqrt(dot(u, u) * dot(x, x));
    return lengths === 0 ? 0 : dot(u, x) / lengths;
  },
};

/** Soft k-means over the rows of one sequence, from given centroids. */
export function centroidPool(rows, start, options) {
  const { iterations = 8, similarity = 'cosine' } = options;
  const temperature = options.temperature ?? (similarity === 'cosine' ? 0.1 : 1);
  const shares = (centroids) => {
    const scores = centroids.map((u) => rows.map((x) => similarities[similarity](u, x)));
    const best = rows.map((_, i) => bestOf(scores.map((row) => row[i])));
    const hard = scores.map((row, j) => row.map((_, i) => (best[i] === j ? 1 : 0)));
    const logits = () => scores.map((row) => row.map((score) => score / temperature));
    const a =
      temperature === 0 ? hard : assignment(logits(), unitWeights(rows.length), 'centroids').a;
    return { a, scores, labels: best, masses: a.map((row) => row.reduce((sum, x) => sum + x, 0)) };
  };
  let centroids = start;
  for (let iteration = 0; iteration < iterations; ++iteration) {
    const { a, masses } = shares(centroids);
    centroids = centroids.map((old, j) =>
      masses[j] === 0
        ? old
        : weightedSum(
            a[j].map((x) => x / masses[j]),
            rows,
            old.length,
          ),
    );
  }
  const { labels, masses, scores } = shares(centroids);
  return { centroids, labels, masses, scores };
}

/** The learned layer, from given starts: initial[b] is an array of M rows. */
export function centroidEncode(options, initial) {
  const { batch, length, dim, heads, headDim } = options.shape;
  const { centroids, steps = 1, stepSize = 1 } = options;
  const width = heads * headDim;
  const output = new Float64Array(batch * centroids * dim);
  for (let b = 0; b < batch; ++b) {
    const x = rowsAt(options.inputs, b * length, length, dim);
    const key = x.map((row) => multiply(options.keyWeight, width, row));
    const value = x.map((row) => multiply(options.valueWeight, width, row));
    const mayTake = neighborhood(options.neighbors, options.neighborCount, centroids, b);
    const weights = options.weights
      ? Float64Array.from(options.weights.subarray(b * length, (b + 1) * length))
      : unitWeights(length);
    let u = initial[b].map((row) => Float64Array.from(row));
    for (let step = 0; step < steps; ++step) {
      const query = u.map((row) => multiply(options.queryWeight, width, row));
      const concatenated = u.map(() => new Float64Array(width));
      for (let head = 0; head < heads; ++head) {
        const part = (row) => row.subarray(head * headDim, (head + 1) * headDim);
        const { output: collected } = collect(query.map(part), key.map(part), value.map(part), {
          ...options,
          scale: options.scale ?? 1 / Math.sqrt(headDim),
          weights,
          mayTake,
          valueDim: headDim,
        });
        collected.forEach((row, j) => concatenated[j].set(row, head * headDim));
      }
      u.forEach((row, j) => {
        addScaled(row, stepSize, multiply(options.outputWeight, dim, concatenated[j]));
      });
    }
    u.forEach((row, j) => output.set(row, (b * centroids + j) * dim));
  }
  return output;
}
