// Top-k and the sparse products.

import { attentionInputs, indices, integers, normals } from '../data.mjs';
import { callArguments, choice, floats, ints, shapeArguments, size } from './kinds.mjs';
import { SHAPE, TYPICAL_SHAPE, typicalLengths } from './shapes.mjs';

// Labels change what the indices mean: lists per cluster instead of per query.
const perCluster = {
  with: { clusters: 2, indices: indices(2 * 2 * 2 * 2, 84, -1, 5) },
};
/** Lists of two keys in which every key of every sequence occurs. */
const everyKey = () => Int32Array.from({ length: 2 * 2 * 5 * 2 }, (_, i) => i % 6);

const sparseArguments = {
  ...shapeArguments('batch', 'heads', 'queryLength', 'keyLength'),
  indices: ints(undefined, -1, 5),
  labels: ints(() => indices(20, 71, -1, 1), -1, 1, perCluster),
  k: size(1, { fits: true }),
  layout: choice('BHLD', 'BLHD'),
  queryLengths: ints(() => Int32Array.of(5, 4), 0, 5),
  keyLengths: ints(() => Int32Array.of(6, 3), 0, 6),
};
const sparseBatched = ['indices', 'labels', 'queryLengths', 'keyLengths'];

export const sparseOperations = {
  topK: {
    minimal: () => ({ scores: normals(2 * 6, 68), shape: { rows: 2, columns: 6 }, k: 2 }),
    typical: () => ({
      scores: integers(9 * 131, 69),
      shape: { rows: 9, columns: 131 },
      k: 20,
      lengths: indices(9, 70, 0, 131),
    }),
    arguments: {
      ...callArguments,
      scores: floats(),
      ...shapeArguments('rows', 'columns'),
      k: size(1),
      lengths: ints(() => Int32Array.of(6, 2), 0, 6),
    },
    batched: ['scores', 'lengths'],
    batchName: 'rows',
  },
  sparseDot: {
    minimal: () => {
      const { query, key } = attentionInputs(SHAPE, 72);
      const shape = { ...SHAPE };
      return { query, key, shape, indices: everyKey(), k: 2 };
    },
    typical: () => {
      const { query, key } = attentionInputs(TYPICAL_SHAPE, 74);
      const lists = indices(3 * 2 * 5 * 9, 75, -1, 130);
      const labels = indices(3 * 2 * 67, 76, -1, 4);
      const shape = { ...TYPICAL_SHAPE };
      return { query, key, shape, indices: lists, k: 9, labels, clusters: 5, ...typicalLengths() };
    },
    arguments: {
      ...callArguments,
      query: floats(),
      key: floats(),
      ...sparseArguments,
      'shape.headDim': size(0, { fits: true }),
      out: floats(() => new Float32Array(2 * 2 * 5 * 2)),
    },
    batched: [...sparseBatched, 'query', 'key'],
  },
  sparseWeightedSum: {
    minimal: () => ({
      weights: normals(2 * 2 * 5 * 2, 77),
      value: attentionInputs(SHAPE, 78).value,
      shape: { ...SHAPE },
      indices: everyKey(),
      k: 2,
    }),
    typical: () => ({
      weights: normals(3 * 2 * 67 * 9, 80),
      value: attentionInputs(TYPICAL_SHAPE, 81).value,
      shape: { ...TYPICAL_SHAPE },
      indices: indices(3 * 2 * 5 * 9, 82, -1, 130),
      k: 9,
      labels: indices(3 * 2 * 67, 83, -1, 4),
      clusters: 5,
      ...typicalLengths(),
    }),
    arguments: {
      ...callArguments,
      weights: floats(),
      value: floats(),
      ...sparseArguments,
      'shape.valueDim': size(0, { fits: true }),
      out: floats(() => new Float32Array(2 * 2 * 5 * 3)),
    },
    batched: [...sparseBatched, 'weights', 'value'],
  },
};
