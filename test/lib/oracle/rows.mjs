// What every operation of the oracle stands on. Everything is float64; a matrix is an array of
// rows; nothing here is fast.

export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i] * b[i];
  return sum;
}

export function squaredDistance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += (a[i] - b[i]) ** 2;
  return sum;
}

/** target += factor · row */
export function addScaled(target, factor, row) {
  for (let i = 0; i < target.length; ++i) target[i] += factor * row[i];
}

/** Rows start…start+count−1 of a dense (…, columns) array, as float64. */
export function rowsAt(array, start, count, columns) {
  return Array.from({ length: count }, (_, row) =>
    Float64Array.from(array.subarray((start + row) * columns, (start + row + 1) * columns)),
  );
}

/** matrix (rows,columns), given flat, times a vector. */
export function multiply(matrix, rows, vector) {
  const columns = vector.length;
  return Float64Array.from({ length: rows }, (_, row) =>
    dot(matrix.subarray(row * columns, (row + 1) * columns), vector),
  );
}

/** Σ_i weights_i rows_i, a row of `columns` zeros when there are none. */
export function weightedSum(weights, rows, columns) {
  const sum = new Float64Array(columns);
  rows.forEach((row, i) => addScaled(sum, weights[i], row));
  return sum;
}

/** log Σ exp(logits); −∞ for none. */
export function logSumExp(logits) {
  const maximum = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (maximum === -Infinity) return -Infinity;
  return maximum + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - maximum), 0));
}

export function softmax(logits) {
  const total = logSumExp(logits);
  return logits.map((logit) => (logit === -Infinity ? 0 : Math.exp(logit - total)));
}

/** Index of the largest score; of equal ones the lowest. */
export function bestOf(scores) {
  let best = 0;
  for (let i = 1; i < scores.length; ++i) {
    if (scores[i] > scores[best]) best = i;
  }
  return best;
}

/** Indices of the k best scores: the larger first, equal ones by index; NaN above everything. */
export function bestFirst(scores, k = scores.length) {
  const above = (a, b) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(b) - Number.isNaN(a);
    return b - a || 0;
  };
  return Array.from(scores, (score, index) => ({ score, index }))
    .toSorted((a, b) => (a.score === b.score ? 0 : above(a.score, b.score)) || a.index - b.index)
    .slice(0, k)
    .map(({ index }) => index);
}

/** The shape of attention with its defaults. */
export function fullShape(shape) {
  const { keyLength = shape.queryLength, valueDim = shape.headDim } = shape;
  return { ...shape, keyLength, valueDim };
}

/**
 * Calls visit(sequence) for every (batch, head): its real query, key and value rows, where its
 * rows begin in arrays of shape (B,H,L,…), and its number among the B·H sequences.
 */
export function eachSequence(options, visit) {
  const shape = fullShape(options.shape);
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = shape;
  for (let b = 0; b < batch; ++b) {
    const queries = options.queryLengths?.[b] ?? queryLength;
    const keys = options.keyLengths?.[b] ?? keyLength;
    for (let h = 0; h < heads; ++h) {
      const number = b * heads + h;
      visit({
        batch: b,
        head: h,
        number,
        firstQuery: number * queryLength,
        query: options.query && rowsAt(options.query, number * queryLength, queries, headDim),
        key: options.key && rowsAt(options.key, number * keyLength, keys, headDim),
        value: options.value && rowsAt(options.value, number * keyLength, keys, valueDim),
      });
    }
  }
}
