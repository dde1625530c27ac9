// The case table that native tests, these tests and the benchmarks share, as calls.

import { readFileSync } from 'node:fs';
import { normals, swapAxes } from './data.mjs';

const table = JSON.parse(readFileSync(new URL('../../cases.json', import.meta.url), 'utf8'));

export const cases = table.cases;

/** The shape of a case; self-attention takes the key length for both. */
export function caseShape(entry, { self = false } = {}) {
  const { batch, heads, keyLength, headDim, valueDim } = entry;
  const queryLength = self ? keyLength : entry.queryLength;
  return { batch, heads, queryLength, keyLength, headDim, valueDim };
}

/** Fills the rows past each sequence's length with NaN, which no operation may read. */
function poison(array, lengths, { batch, heads, rows, columns }) {
  if (!lengths) return array;
  for (let b = 0; b < batch; ++b) {
    for (let h = 0; h < heads; ++h) {
      const end = (b * heads + h + 1) * rows * columns;
      array.fill(NaN, end - (rows - lengths[b]) * columns, end);
    }
  }
  return array;
}

/**
 * One case as options of an attention kind in the layout of the case, the same data in BHLD for
 * the oracle (`plain`), and toPlain(output), which brings an output into BHLD.
 */
export function caseCall(entry, seed, { draw = normals, self = false } = {}) {
  const shape = caseShape(entry, { self });
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = shape;
  const lengths = {};
  const keyLengths = entry.keyLengths && Int32Array.from(entry.keyLengths);
  const queryLengths = self
    ? keyLengths
    : entry.queryLengths && Int32Array.from(entry.queryLengths);
  if (queryLengths && !self) lengths.queryLengths = queryLengths;
  if (keyLengths) lengths.keyLengths = keyLengths;

  const tensor = (rows, columns, valid, offset) =>
    poison(draw(batch * heads * rows * columns, seed + offset), valid, {
      batch,
      heads,
      rows,
      columns,
    });
  const plain = {
    query: tensor(queryLength, headDim, queryLengths, 0),
    key: tensor(keyLength, headDim, keyLengths, 1),
    value: tensor(keyLength, valueDim, keyLengths, 2),
    shape,
    ...lengths,
  };
  const swapped = entry.layout === 'BLHD';
  const inLayout = (array, rows, columns) =>
    swapped ? swapAxes(array, batch, heads, rows, columns) : array;
  const options = {
    query: inLayout(plain.query, queryLength, headDim),
    key: inLayout(plain.key, keyLength, headDim),
    value: inLayout(plain.value, keyLength, valueDim),
    shape,
    layout: entry.layout,
    ...lengths,
  };
  const toPlain = (output) =>
    swapped ? swapAxes(output, batch, queryLength, heads, valueDim) : output;
  return { options, plain, toPlain };
}

/** A case as a batch of vectors (batch, length, dim), with lengths where the case has them. */
export function caseVectors(entry, seed, { draw = normals } = {}) {
  const { batch, keyLength: length, headDim: dim } = entry;
  const lengths = entry.keyLengths && Int32Array.from(entry.keyLengths);
  const inputs = draw(batch * length * dim, seed);
  poison(inputs, lengths, { batch, heads: 1, rows: length, columns: dim });
  return { inputs, shape: { batch, length, dim }, ...(lengths && { lengths }) };
}
