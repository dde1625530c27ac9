// Gradients of centroid attention, pooling and encoding.

import * as oracle from '../../oracle/index.mjs';
import { attentionInputs, indices, normals } from '../data.mjs';
import { required } from '../package.mjs';

const SHAPE = { batch: 2, heads: 2, queryLength: 4, keyLength: 9, headDim: 3, valueDim: 2 };

/** Every third input is removed. */
const inputWeights = () =>
  normals(2 * 9, 3301).map((x, i) => (i % 3 === 1 ? 0 : Math.abs(x) + 0.1));
const restrictions = [
  ['plain', () => ({}), []],
  ['lengths', () => ({ queryLengths: Int32Array.of(4, 2), keyLengths: Int32Array.of(6, 9) }), []],
  ['weights', () => ({ weights: inputWeights() }), ['weights']],
  ['neighbors', () => ({ neighbors: indices(2 * 4 * 3, 3302, -1, 8), neighborCount: 3 }), []],
  [
    'neighbors, weights and lengths',
    () => ({
      neighbors: indices(2 * 4 * 4, 3303, -1, 8),
      neighborCount: 4,
      weights: inputWeights(),
      keyLengths: Int32Array.of(7, 9),
    }),
    ['weights'],
  ],
];
const modes = ['centroids', 'inputs'].flatMap((normalize) =>
  ['sum', 'mean'].map((aggregate) => ({ normalize, aggregate })),
);

const LAYER = { batch: 2, length: 7, dim: 4, heads: 2, headDim: 2 };
const projections = () => ({
  queryWeight: normals(4 * 4, 3311, 0.5),
  keyWeight: normals(4 * 4, 3312, 0.5),
  valueWeight: normals(4 * 4, 3313, 0.5),
  outputWeight: normals(4 * 4, 3314, 0.5),
});
const projectionNames = Object.keys(projections());

/** The rows of every batch entry that a start may take: the real ones of weight other than 0. */
const startingRows = ({ inputs, shape, weights, lengths }) =>
  Array.from({ length: shape.batch }, (_, b) =>
    oracle
      .rowsAt(inputs, b * shape.length, lengths?.[b] ?? shape.length, shape.dim)
      .filter((_row, i) => weights?.[b * shape.length + i] !== 0),
  );

const givenRows = (array, { shape, centroids }, b) =>
  oracle.rowsAt(array, b * centroids, centroids, shape.dim);

/** Which rows the package's start takes, found in `start`, what the operation without steps gives. */
function placesOf(options, start) {
  return startingRows(options).map((rows, b) => {
    const known = rows.map(String);
    const places = givenRows(start, options, b).map((row) => known.indexOf(String(row)));
    return places.slice(0, rows.length);
  });
}

/** start(options): the first centroids of every batch entry; picked rows stay the same ones. */
function startOf(options, operation, withoutSteps) {
  const { initial = 'stride' } = options;
  if (typeof initial === 'object') {
    return (moved) => startingRows(moved).map((_rows, b) => givenRows(moved.initial, moved, b));
  }
  if (initial === 'stride') {
    return (moved) =>
      startingRows(moved).map((rows) =>
        rows.length === 0 ? [] : oracle.strideStart(rows, Math.min(options.centroids, rows.length)),
      );
  }
  const places = placesOf(options, required[`${operation}Sync`]({ ...options, ...withoutSteps }));
  return (moved) => startingRows(moved).map((rows, b) => places[b].map((place) => rows[place]));
}

const layerWeights = () =>
  normals(2 * 7, 3315).map((x, i) => (i % 4 === 1 ? 0 : Math.abs(x) + 0.1));
const encodeStarts = [{}, { initial: 'farthest' }, { initial: 'sample', seed: 3 }];
const encodeRestrictions = [
  ['plain', () => ({})],
  ['weights', () => ({ weights: layerWeights() })],
  ['neighbors', () => ({ neighbors: indices(2 * 3 * 4, 3317, -1, 6), neighborCount: 4 })],
  ['given start', () => ({ initial: normals(2 * 3 * 4, 3316) }), ['initial']],
];
const encodeOptions = () => ({
  inputs: normals(2 * 7 * 4, 3310),
  shape: LAYER,
  centroids: 3,
  ...projections(),
  stepSize: 0.5,
});
const encodeCase = (title, options, more = []) => ({
  title,
  options,
  oracle: (moved) => {
    const start = startOf(options(), 'centroidEncode', { steps: 0 });
    return oracle.centroidEncode(moved, start(moved));
  },
  of: ['inputs', ...projectionNames, ...more],
});

const POOL = { batch: 2, length: 7, dim: 3 };
const poolOptions = () => ({ inputs: normals(2 * 7 * 3, 3320), shape: POOL, centroids: 3 });
const poolStarts = [
  ['stride', { iterations: 1 }],
  ['kmeans++, lengths', { initial: 'kmeans++', seed: 2, lengths: Int32Array.of(7, 2) }],
  ['farthest', { initial: 'farthest', iterations: 3 }],
  ['given', { initial: normals(2 * 3 * 3, 3321) }],
  ['given, hard, one far away', { initial: farAway(), temperature: 0 }],
];

/** Given centroids of which the second is too far from all inputs to get one. */
function farAway() {
  return normals(2 * 3 * 3, 3322).map((x, i) => (Math.floor(i / 3) % 3 === 1 ? -90 : x));
}

function poolOracle(options, start) {
  const { batch, length, dim } = options.shape;
  const output = new Float64Array(batch * options.centroids * dim);
  start(options).forEach((rows, b) => {
    const real = options.lengths?.[b] ?? length;
    const inputs = oracle.rowsAt(options.inputs, b * length, real, dim);
    const { centroids } = oracle.centroidPool(inputs, rows, options);
    centroids.forEach((row, j) => output.set(row, (b * options.centroids + j) * dim));
  });
  return output;
}

const poolCase = (title, options) => ({
  title,
  options,
  oracle: (moved) =>
    poolOracle(moved, startOf(options(), 'centroidPool', { iterations: 0, details: false })),
  of: ['inputs', ...(typeof options().initial === 'object' ? ['initial'] : [])],
});

export const centroidGradients = {
  centroidAttention: modes.flatMap((mode) =>
    restrictions.map(([title, restriction, more]) => ({
      title: `${mode.normalize}, ${mode.aggregate}, ${title}`,
      options: () => ({ ...attentionInputs(SHAPE, 3300), shape: SHAPE, ...mode, ...restriction() }),
      oracle: (options) => oracle.centroidAttention(options).output,
      of: ['query', 'key', 'value', ...more],
    })),
  ),
  centroidPool: ['cosine', 'dot', 'euclidean'].flatMap((similarity) =>
    poolStarts.map(([title, start]) =>
      poolCase(`${similarity}, ${title}`, () => ({
        ...poolOptions(),
        similarity,
        iterations: 2,
        temperature: 0.5,
        ...start,
      })),
    ),
  ),
  centroidEncode: [
    ...modes.flatMap((mode) =>
      encodeRestrictions.map(([title, restriction, more]) =>
        encodeCase(
          `${mode.normalize}, ${mode.aggregate}, ${title}`,
          () => ({ ...encodeOptions(), ...mode, ...restriction(), steps: 2 }),
          more,
        ),
      ),
    ),
    ...encodeStarts.map((start, i) =>
      encodeCase(`from ${start.initial ?? 'stride'}, ${i + 1} steps`, () => ({
        ...encodeOptions(),
        ...start,
        aggregate: 'mean',
        steps: i + 1,
      })),
    ),
    // So few centroids of so wide inputs that the projections are absorbed.
    encodeCase('one centroid', () => ({ ...encodeOptions(), centroids: 1, steps: 1 })),
  ],
};
