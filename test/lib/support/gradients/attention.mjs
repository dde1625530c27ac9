// Gradients of exact, clustered and improved clustered attention.

import * as oracle from '../../oracle/index.mjs';
import { attentionInputs, indices } from '../data.mjs';

const SHAPE = { batch: 2, heads: 2, queryLength: 7, keyLength: 6, headDim: 3, valueDim: 2 };
const LENGTHS = { queryLengths: Int32Array.of(7, 4), keyLengths: Int32Array.of(3, 6) };
const inputs = (more) => () => ({ ...attentionInputs(SHAPE, 3400), shape: SHAPE, ...more });
const of = ['query', 'key', 'value'];

/** The oracle given the choices that the package made; `frozen` are masses that do not move. */
const clustered =
  (frozen) =>
  (options, { labels, indices: chosen }) =>
    oracle.clusteredAttention({
      ...options,
      labels,
      indices: chosen,
      masses: frozen?.({ labels, indices: chosen }),
    }).output;

// Clusters 4 and 5 are empty, and some queries are in none.
const given = { labels: indices(2 * 2 * 7, 3401, -1, 3), clusters: 6 };
const groupings = [
  ['hashed', { clusters: 3 }],
  ['Euclidean groups, lengths', { clusters: 3, grouping: 'euclidean', ...LENGTHS }],
  ['given labels', given],
  ['given labels, lengths', { ...given, ...LENGTHS }],
];
const improved = groupings.flatMap(([title, more]) =>
  [2, 4, 9].map((topK) => [`${title}, k = ${topK}`, { ...more, topK }]),
);

export const attentionGradients = {
  attention: [
    ['plain', {}],
    ['causal', { causal: true }],
    ['lengths', LENGTHS],
    ['causal, lengths', { causal: true, ...LENGTHS }],
    ['a negative scale', { scale: -0.7 }],
  ].map(([title, more]) => ({
    title,
    options: inputs(more),
    oracle: (options) => oracle.attention(options).output,
    of,
  })),
  clusteredAttention: groupings.map(([title, more]) => ({
    title,
    options: inputs(more),
    oracle: clustered(),
    of,
  })),
  improvedClusteredAttention: [
    ...improved.map(([title, more]) => ({ title, options: inputs(more), oracle: clustered(), of })),
    ...improved.map(([title, more]) => ({
      title: `${title}, detached mass`,
      options: inputs({ ...more, detachMass: true }),
      oracle: clustered((choices) => oracle.topMasses({ ...inputs(more)(), ...choices })),
      of,
    })),
  ],
};
