// Hashing, k-means, aggregate and broadcast.

import { indices, normals, words } from '../data.mjs';
import {
  array,
  boolean,
  callArguments,
  choice,
  floats,
  ints,
  number,
  shapeArguments,
  size,
} from './kinds.mjs';

export const clusteringOperations = {
  lshPlanes: {
    minimal: () => ({ bits: 7, dim: 4 }),
    typical: () => ({ bits: 63, dim: 24, seed: 9, hashBias: false }),
    arguments: {
      ...callArguments,
      bits: size(1, { high: 64 }),
      dim: size(1, { slow: true }),
      seed: size(0, { seed: true }),
      hashBias: boolean,
    },
    batched: [],
  },
  hash: {
    minimal: () => ({
      inputs: normals(5 * 4, 50),
      planes: normals(7 * 5, 51),
      shape: { rows: 5, dim: 4, bits: 7 },
    }),
    typical: () => ({
      inputs: normals(131 * 24, 52),
      planes: normals(63 * 25, 53),
      shape: { rows: 131, dim: 24, bits: 63 },
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      planes: floats(),
      ...shapeArguments('rows', 'dim', 'bits'),
      'shape.bits': size(1, { high: 64, fits: true }),
    },
    batched: ['inputs'],
    batchName: 'rows',
  },
  hammingKMeans: {
    minimal: () => ({
      hashes: words(2 * 6, 54, 63),
      shape: { batch: 2, length: 6 },
      clusters: 2,
    }),
    typical: () => ({
      hashes: words(3 * 131, 55, 9),
      shape: { batch: 3, length: 131 },
      clusters: 7,
      bits: 9,
      seed: 6,
      lengths: Int32Array.of(131, 40, 3),
    }),
    arguments: {
      ...callArguments,
      hashes: array(BigUint64Array),
      ...shapeArguments('batch', 'length'),
      clusters: size(1),
      bits: size(1, { high: 64 }),
      iterations: size(0),
      seed: size(0, { seed: true }),
      initial: array(BigUint64Array, { valid: () => words(4, 56, 63) }),
      lengths: ints(() => Int32Array.of(6, 2), 0, 6),
    },
    batched: ['hashes', 'initial', 'lengths'],
  },
  kMeans: {
    minimal: () => ({
      inputs: normals(2 * 6 * 4, 57),
      shape: { batch: 2, length: 6, dim: 4 },
      clusters: 2,
    }),
    typical: () => ({
      inputs: normals(3 * 131 * 24, 58),
      shape: { batch: 3, length: 131, dim: 24 },
      clusters: 7,
      seed: 7,
      lengths: Int32Array.of(131, 40, 3),
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      ...shapeArguments('batch', 'length', 'dim'),
      clusters: size(1),
      iterations: size(0),
      tolerance: number({ low: 0 }),
      seed: size(0, { seed: true }),
      initial: floats(() => normals(2 * 2 * 4, 59), { choices: ['kmeans++'] }),
      metric: choice('euclidean', 'cosine'),
      lengths: ints(() => Int32Array.of(6, 2), 0, 6),
    },
    batched: ['inputs', 'initial', 'lengths'],
  },
  aggregate: {
    minimal: () => ({
      inputs: normals(2 * 6 * 4, 60),
      labels: Int32Array.from({ length: 2 * 6 }, (_, i) => (i * 5) % 3),
      shape: { batch: 2, length: 6, dim: 4 },
      clusters: 3,
    }),
    typical: () => ({
      inputs: normals(3 * 131 * 24, 62),
      labels: indices(3 * 131, 63, -1, 6),
      shape: { batch: 3, length: 131, dim: 24 },
      clusters: 7,
      reduce: 'sum',
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      labels: ints(undefined, -1, 2),
      ...shapeArguments('batch', 'length', 'dim'),
      clusters: size(1, { labelled: true }),
      reduce: choice('mean', 'sum'),
      out: floats(() => new Float32Array(2 * 3 * 4)),
    },
    batched: ['inputs', 'labels'],
  },
  broadcast: {
    minimal: () => ({
      inputs: normals(2 * 3 * 4, 64),
      labels: Int32Array.from({ length: 2 * 6 }, (_, i) => (i * 5) % 3),
      shape: { batch: 2, length: 6, dim: 4 },
      clusters: 3,
    }),
    typical: () => ({
      inputs: normals(3 * 7 * 24, 66),
      labels: indices(3 * 131, 67, -1, 6),
      shape: { batch: 3, length: 131, dim: 24 },
      clusters: 7,
    }),
    arguments: {
      ...callArguments,
      inputs: floats(),
      labels: ints(undefined, -1, 2),
      ...shapeArguments('batch', 'length', 'dim'),
      clusters: size(1, { fits: true }),
      reduce: choice('mean', 'sum'),
      out: floats(() => new Float32Array(2 * 6 * 4)),
    },
    batched: ['inputs', 'labels'],
  },
};
