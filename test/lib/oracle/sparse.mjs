// Top-k and the sparse products.

import { addScaled, bestFirst, dot, eachSequence, fullShape } from './rows.mjs';

export function topK({ scores, shape: { rows, columns }, k, lengths }) {
  const width = Math.min(k, columns);
  const values = new Float32Array(rows * width).fill(-Infinity);
  const indices = new Int32Array(rows * width).fill(-1);
  for (let row = 0; row < rows; ++row) {
    const valid = scores.subarray(row * columns, row * columns + (lengths?.[row] ?? columns));
    bestFirst(valid, width).forEach((column, n) => {
      values[row * width + n] = valid[column];
      indices[row * width + n] = column;
    });
  }
  return { values, indices };
}

/** Calls visit(place in (B,H,L,k), sequence, l, index) for every listed index of a real query. */
function eachListed(options, visit) {
  const { indices, labels, clusters, k } = options;
  const { queryLength, keyLength } = fullShape(options.shape);
  eachSequence(options, (sequence) => {
    const { batch, number, firstQuery } = sequence;
    const queries = options.queryLengths?.[batch] ?? queryLength;
    const keys = options.keyLengths?.[batch] ?? keyLength;
    for (let l = 0; l < queries; ++l) {
      const list = labels
        ? labels[firstQuery + l] < 0
          ? -1
          : number * clusters + labels[firstQuery + l]
        : firstQuery + l;
      if (list < 0) continue;
      for (let n = 0; n < k; ++n) {
        const index = indices[list * k + n];
        if (index >= 0 && index < keys) visit((firstQuery + l) * k + n, sequence, l, index);
      }
    }
  });
}

export function sparseDot(options) {
  const { batch, heads, queryLength } = options.shape;
  const output = new Float64Array(batch * heads * queryLength * options.k).fill(-Infinity);
  eachListed(options, (place, { query, key }, l, index) => {
    output[place] = dot(query[l], key[index]);
  });
  return output;
}

export function sparseWeightedSum(options) {
  const { batch, heads, queryLength, valueDim } = fullShape(options.shape);
  const output = new Float64Array(batch * heads * queryLength * valueDim);
  eachListed(options, (place, { firstQuery, value }, l, index) => {
    const row = output.subarray((firstQuery + l) * valueDim, (firstQuery + l + 1) * valueDim);
    addScaled(row, options.weights[place], value[index]);
  });
  return output;
}
