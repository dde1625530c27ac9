// Pooling and encoding into centroids.

import { indices, normals } from '../data.mjs';
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

const encodeWeights = (width, dim, seed) => ({
  queryWeight: normals(width * dim, seed, 0.5),
  keyWeight: normals(width * dim, seed + 1, 0.5),
  valueWeight: normals(width * dim, seed + 2, 0.5),
  outputWeight: normals(width * dim, seed + 3, 0.5),
});

export const centroidOperations = {
  centroidPool: {
    minimal: () => ({
      inputs: normals(2 * 6 * 4, 30),
      shape: { batch: 2, length: 6, dim: 4 },
      centroids: 2,
    }),
    typical: () => ({
      inputs: normals(3 * 131 * 24, 31),
      shape: { batch: 3, length: 131, dim: 24 },
      lengths: Int32Array.of(131, 20, 3),
      centroids: 7,
      initial: 'kmeans++',
      seed: 5,
      details: true,
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      ...shapeArguments('batch', 'length', 'dim'),
      centroids: size(1),
      iterations: size(0, { slow: true }),
      similarity: choice('cosine', 'dot', 'euclidean'),
      temperature: number({ low: 0 }),
      initial: floats(() => normals(2 * 2 * 4, 32), {
        choices: ['stride', 'kmeans++', 'farthest'],
      }),
      seed: size(0, { seed: true }),
      lengths: ints(() => Int32Array.of(6, 2), 0, 6),
      details: boolean,
      out: floats(() => new Float32Array(2 * 2 * 4)),
    },
    batched: ['inputs', 'lengths', 'initial'],
  },
  centroidEncode: {
    minimal: () => ({
      inputs: normals(2 * 6 * 4, 33),
      shape: { batch: 2, length: 6, dim: 4, heads: 2, headDim: 3 },
      centroids: 2,
      ...encodeWeights(6, 4, 34),
    }),
    typical: () => ({
      inputs: normals(3 * 131 * 24, 40),
      shape: { batch: 3, length: 131, dim: 24, heads: 3, headDim: 7 },
      centroids: 11,
      ...encodeWeights(21, 24, 41),
      weights: normals(3 * 131, 45).map(Math.abs),
      aggregate: 'mean',
      initial: 'sample',
      steps: 3,
      stepSize: 0.5,
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      ...shapeArguments('batch', 'length', 'dim', 'heads', 'headDim'),
      centroids: size(1),
      initial: floats(() => normals(2 * 2 * 4, 32), {
        choices: ['stride', 'sample', 'farthest'],
      }),
      queryWeight: floats(),
      keyWeight: floats(),
      valueWeight: floats(),
      outputWeight: floats(),
      steps: size(0, { slow: true }),
      stepSize: number(),
      scale: number(),
      normalize: choice('centroids', 'inputs'),
      aggregate: choice('sum', 'mean'),
      weights: floats(() => new Float32Array(12).fill(0.5), { low: 0 }),
      neighbors: ints(() => indices(2 * 2 * 3, 46, -1, 5), -1, 5, { with: { neighborCount: 3 } }),
      seed: size(0, { seed: true }),
      out: floats(() => new Float32Array(2 * 2 * 4)),
    },
    batched: ['inputs', 'initial', 'weights', 'neighbors'],
  },
};
