// Gradients of centroid attention, pooling and encoding.

import * as oracle from '../../oracle/index.mjs';
import { attentionInputs, indices, normals } from '../data.mjs';

const SHAPE = { batch: 2, heads: 2, queryLength: 4, keyLength: 9, headDim: 3, valueDim: 2 };

/** Every third input is removed. */
const weights = () => normals(2 * 9, 3301).map((x, i) => (i % 3 === 1 ? 0 : Math.abs(x) + 0.1));
const restrictions = [
  ['plain', () => ({}), []],
  ['lengths', () => ({ queryLengths: Int32Array.of(4, 2), keyLengths: Int32Array.of(6, 9) }), []],
  ['weights', () => ({ weights: weights() }), ['weights']],
  ['neighbors', () => ({ neighbors: indices(2 * 4 * 3, 3302, -1, 8), neighborCount: 3 }), []],
  [
    'neighbors, weights and lengths',
    () => ({
      neighbors: indices(2 * 4 * 4, 3303, -1, 8),
      neighborCount: 4,
      weights: weights(),
      keyLengths: Int32Array.of(7, 9),
    }),
    ['weights'],
  ],
];
const modes = ['centroids', 'inputs'].flatMap((normalize) =>
  ['sum', 'mean'].map((aggregate) => ({ normalize, aggregate })),
);

export const centroidGradients = {
  centroidAttention: modes.flatMap((mode) =>
    restrictions.map(([title, restriction, more]) => ({
      title: `${mode.normalize}, ${mode.aggregate}, ${title}`,
      options: () => ({ ...attentionInputs(SHAPE, 3300), shape: SHAPE, ...mode, ...restriction() }),
      oracle: (options) => oracle.centroidAttention(options).output,
      of: ['query', 'key', 'value', ...more],
    })),
  ),
};
