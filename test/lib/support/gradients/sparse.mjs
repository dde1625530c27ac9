// Gradients of aggregate, broadcast and the sparse products.

import * as oracle from '../../oracle/index.mjs';
import { attentionInputs, indices, normals } from '../data.mjs';

const VECTORS = { batch: 2, length: 11, dim: 3 };
const groups = (low = -1) => ({
  labels: indices(VECTORS.batch * VECTORS.length, 3001, low, 2),
  shape: VECTORS,
  clusters: 5, // the last two are empty
});

const SHAPE = { batch: 2, heads: 2, queryLength: 5, keyLength: 7, headDim: 3, valueDim: 2 };
const LENGTHS = { queryLengths: Int32Array.of(5, 3), keyLengths: Int32Array.of(7, 4) };
const perQuery = { indices: indices(2 * 2 * 5 * 3, 3011, -1, 6), k: 3, shape: SHAPE };
const perCluster = {
  indices: indices(2 * 2 * 3 * 4, 3012, -1, 6),
  labels: indices(2 * 2 * 5, 3013, -1, 2),
  clusters: 3,
  k: 4,
  shape: SHAPE,
};
const sparseCases = (inputs, operation, of) =>
  [
    ['lists per query', perQuery],
    ['lists per cluster', perCluster],
    ['lengths', { ...perQuery, ...LENGTHS }],
    ['lengths, per cluster', { ...perCluster, ...LENGTHS }],
  ].map(([title, lists]) => ({
    title,
    options: () => ({ ...inputs(lists), ...lists }),
    oracle: operation,
    of,
  }));

export const sparseGradients = {
  aggregate: ['mean', 'sum'].map((reduce) => ({
    title: reduce,
    options: () => ({ inputs: normals(2 * 11 * 3, 3000), ...groups(), reduce }),
    oracle: oracle.aggregate,
    of: ['inputs'],
  })),
  broadcast: [
    {
      title: 'labels of -1',
      options: () => ({ inputs: normals(2 * 5 * 3, 3002), ...groups() }),
      oracle: oracle.broadcast,
      of: ['inputs'],
    },
    {
      title: 'all labelled',
      options: () => ({ inputs: normals(2 * 5 * 3, 3003), ...groups(0) }),
      oracle: oracle.broadcast,
      of: ['inputs'],
    },
  ],
  sparseDot: sparseCases(
    () => {
      const { query, key } = attentionInputs(SHAPE, 3020);
      return { query, key };
    },
    oracle.sparseDot,
    ['query', 'key'],
  ),
  sparseWeightedSum: sparseCases(
    ({ k }) => ({
      weights: normals(2 * 2 * 5 * k, 3030),
      value: attentionInputs(SHAPE, 3031).value,
    }),
    oracle.sparseWeightedSum,
    ['weights', 'value'],
  ),
};
