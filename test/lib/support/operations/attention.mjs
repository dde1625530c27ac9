// The attention kinds.

import { attentionInputs, indices, normals } from '../data.mjs';
import {
  boolean,
  callArguments,
  choice,
  floats,
  ints,
  number,
  shapeArguments,
  size,
} from './kinds.mjs';
import { SELF, SHAPE, TYPICAL_SELF, TYPICAL_SHAPE, typicalLengths } from './shapes.mjs';

const attentionArguments = {
  ...callArguments,
  query: floats(),
  key: floats(),
  value: floats(),
  ...shapeArguments('batch', 'heads', 'queryLength', 'keyLength', 'headDim', 'valueDim'),
  layout: choice('BHLD', 'BLHD'),
  scale: number(),
  queryLengths: ints(() => Int32Array.of(5, 4), 0, 5),
  keyLengths: ints(() => Int32Array.of(6, 3), 0, 6),
  details: boolean,
  out: floats(() => new Float32Array(2 * 2 * 5 * 3)),
};
const attentionBatched = ['query', 'key', 'value', 'queryLengths', 'keyLengths'];

const minimalAttention = (more) => () => ({
  ...attentionInputs(SHAPE, 11),
  shape: { ...SHAPE },
  ...more?.(),
});
const typicalAttention = (more) => () => ({
  ...attentionInputs(TYPICAL_SHAPE, 12),
  ...typicalLengths(),
  shape: { ...TYPICAL_SHAPE },
  details: true,
  ...more?.(),
});

const clusteredArguments = {
  ...attentionArguments,
  clusters: size(1),
  grouping: choice('hamming', 'euclidean'),
  bits: size(1, { high: 64 }),
  iterations: size(0),
  hashBias: boolean,
  threshold: choice('normal', 'data'),
  seed: size(0, { seed: true }),
  planes: floats(() => normals(63 * 5, 13)),
  labels: ints(() => indices(20, 14, 0, 1), -1, 1),
};

const castArguments = {
  ...attentionArguments,
  'shape.keyLength': undefined,
  queryLengths: undefined,
  out: floats(() => new Float32Array(2 * 2 * 6 * 3)),
  surrogates: floats(),
  gate: floats(),
  clusters: size(1, { fits: true }),
  clusterSize: size(1),
  selection: choice('topK', 'singleAssignment'),
  activation: choice('softmax', 'laplace'),
  indices: ints(() => Int32Array.of(0, 1, 2, 3, 4, 5, -1, -1, 0, 1, 2, 3), -1, 5, { sets: true }),
};

const defined = (entries) =>
  Object.fromEntries(Object.entries(entries).filter(([, value]) => value !== undefined));

export const attentionOperations = {
  attention: {
    minimal: minimalAttention(),
    typical: typicalAttention(() => ({ causal: true })),
    arguments: { ...attentionArguments, causal: boolean },
    batched: attentionBatched,
  },
  clusteredAttention: {
    minimal: minimalAttention(() => ({ clusters: 2 })),
    typical: typicalAttention(() => ({ clusters: 5, threshold: 'data', seed: 3 })),
    arguments: clusteredArguments,
    batched: [...attentionBatched, 'labels'],
  },
  improvedClusteredAttention: {
    minimal: minimalAttention(() => ({ clusters: 2 })),
    typical: typicalAttention(() => ({ clusters: 6, topK: 9, grouping: 'euclidean', seed: 4 })),
    arguments: { ...clusteredArguments, topK: size(1) },
    batched: [...attentionBatched, 'labels'],
  },
  centroidAttention: {
    minimal: minimalAttention(),
    typical: typicalAttention(() => ({
      aggregate: 'mean',
      weights: normals(3 * 131, 15).map(Math.abs),
      neighbors: indices(3 * 67 * 20, 16, -1, 130),
      neighborCount: 20,
    })),
    arguments: {
      ...attentionArguments,
      normalize: choice('centroids', 'inputs'),
      aggregate: choice('sum', 'mean'),
      weights: floats(() => new Float32Array(12).fill(0.5), { low: 0 }),
      neighbors: ints(() => indices(2 * 5 * 3, 17, -1, 5), -1, 5, { with: { neighborCount: 3 } }),
    },
    batched: [...attentionBatched, 'weights', 'neighbors'],
  },
  castAttention: {
    minimal: () => ({
      ...attentionInputs(SELF, 18),
      shape: { ...SELF },
      surrogates: normals(2 * 2 * 4, 19),
      gate: normals(2 * 6, 20),
      clusters: 2,
      clusterSize: 3,
    }),
    typical: () => ({
      ...attentionInputs(TYPICAL_SELF, 21),
      shape: { ...TYPICAL_SELF },
      keyLengths: Int32Array.of(71, 30, 1),
      surrogates: normals(2 * 5 * 24, 22),
      gate: normals(3 * 71, 23),
      clusters: 5,
      clusterSize: 17,
      selection: 'singleAssignment',
      details: true,
    }),
    arguments: defined(castArguments),
    batched: ['query', 'key', 'value', 'keyLengths', 'gate', 'indices'],
  },
};
