// Gradients of CAST: tokens in several clusters, in one and in none.

import * as oracle from '../../oracle/index.mjs';
import { attentionInputs, normals } from '../data.mjs';

const SHAPE = { batch: 2, heads: 2, queryLength: 7, keyLength: 7, headDim: 3, valueDim: 2 };

/** An empty cluster, empty slots, tokens listed twice and not at all. */
const given = () =>
  Int32Array.of(-1, -1, -1, 0, 2, 3, 2, 4, -1, /* batch entry 1 */ 6, 1, 0, -1, 1, -1, 5, 1, 6);
const selections = [
  ['topK', () => ({})],
  ['single assignment', () => ({ selection: 'singleAssignment' })],
  ['given indices', () => ({ indices: given() })],
  ['topK, lengths', () => ({ keyLengths: Int32Array.of(4, 7) })],
  [
    'given indices, lengths, scale',
    () => ({ indices: given(), keyLengths: Int32Array.of(3, 6), scale: -0.7 }),
  ],
];

export const castGradients = {
  castAttention: ['softmax', 'laplace'].flatMap((activation) =>
    selections.map(([title, more]) => ({
      title: `${activation}, ${title}`,
      options: () => ({
        ...attentionInputs(SHAPE, 3400),
        shape: SHAPE,
        surrogates: normals(2 * 3 * 3, 3401),
        gate: normals(2 * 7, 3402),
        clusters: 3,
        clusterSize: 3,
        activation,
        ...more(),
      }),
      oracle: (options, { indices }) => oracle.castAttention({ ...options, indices }).output,
      of: ['query', 'key', 'value', 'surrogates', 'gate'],
    })),
  ),
};
