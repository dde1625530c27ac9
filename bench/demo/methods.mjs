// What the demo compares: every kind of attention on the same problem, and how each is timed.

const GROUPINGS = {
  // Patches are far from the origin, so thresholds follow the data.
  hamming: { label: 'Hamming', options: { grouping: 'hamming', threshold: 'data' } },
  euclidean: { label: 'Euclidean', options: { grouping: 'euclidean' } },
};

/** A run of the yardstick may take a minute, the others are repeated; their median counts. */
const REPEATS = 5;
/** Leading pixels that a first, uncounted call works on: it starts threads and pages in code. */
export const WARM_UP_TOKENS = 256;

/** The kinds of attention, the yardstick first: `options(settings)` are those beyond the problem. */
export const ATTENTIONS = [
  { id: 'exact', label: 'Exact', operation: 'attention', runs: 1, options: () => ({}) },
  ...Object.entries(GROUPINGS).map(([id, grouping]) => ({
    id: `clustered-${id}`,
    label: `Clustered · ${grouping.label}`,
    operation: 'clusteredAttention',
    runs: REPEATS,
    options: ({ clusters, seed }) => ({ clusters, seed, ...grouping.options }),
  })),
  ...Object.entries(GROUPINGS).map(([id, grouping]) => ({
    id: `improved-${id}`,
    label: `Improved · ${grouping.label}`,
    operation: 'improvedClusteredAttention',
    runs: REPEATS,
    options: ({ clusters, topK, seed }) => ({ clusters, topK, seed, ...grouping.options }),
  })),
];

/** The result that is painted, and that must be near the yardstick. */
export const BEST = 'improved-euclidean';

export const POOLING = {
  id: 'painting',
  label: 'Centroid pooling',
  operation: 'centroidPool',
  runs: REPEATS,
};

/** The problem cut down to its first pixels. */
export function shorten(options, tokens) {
  const { shape } = options;
  const length = Math.min(shape.length ?? shape.queryLength, tokens);
  const first = (array, dim) => array.subarray(0, length * dim);
  if (options.inputs) {
    const centroids = Math.min(options.centroids, length);
    return {
      ...options,
      inputs: first(options.inputs, shape.dim),
      shape: { ...shape, length },
      centroids,
    };
  }
  return {
    ...options,
    query: first(options.query, shape.headDim),
    key: first(options.key, shape.headDim),
    value: first(options.value, shape.valueDim),
    shape: { ...shape, queryLength: length },
  };
}

/**
 * Runs one method in this process: a warm-up call, then the counted ones. The time is that of the
 * asynchronous form, from the call to the resolved promise, the copy of the inputs included.
 *
 * @param {object} api the package
 * @param {{ operation: string, runs: number }} method
 * @param {object} options of the operation
 * @param {(run: number) => void} onRun called after each counted run
 * @returns {Promise<{ result: object, milliseconds: number }>} the last result, the median time
 */
export async function timeMethod(api, { operation, runs }, options, onRun) {
  const run = api[operation];
  await run(shorten(options, WARM_UP_TOKENS));
  const times = [];
  let result;
  for (let index = 0; index < runs; index++) {
    const start = performance.now();
    // oxlint-disable-next-line no-await-in-loop -- runs that overlap cannot be timed
    result = await run(options);
    times.push(performance.now() - start);
    onRun(index);
  }
  return { result, milliseconds: times.toSorted((a, b) => a - b)[(runs - 1) / 2] };
}
