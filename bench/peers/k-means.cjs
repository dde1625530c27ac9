'use strict';
// The process that measures kMeans of this package beside scikit-learn's: the queries of every
// sequence, from evenly spaced rows, a fixed number of updates. See lib/bench/protocol.ts.

const { binding } = require('../../dist/binding.js');
const { kMeansSync, setNumThreads } = require('../../dist/index.js');
const { countFlops } = require('../../dist/bench/flops.js');
const { loadInputs } = require('../../dist/bench/inputs.js');
const { repeatsFor, serve } = require('../../dist/bench/protocol.js');

const BOUND = 1e-4;

/** Rows ⌊jN/C⌋ of every sequence. */
function startOf(query, { batch, length, dim }, clusters) {
  const initial = new Float32Array(batch * clusters * dim);
  for (let i = 0; i < batch * clusters; ++i) {
    const [b, j] = [Math.floor(i / clusters), i % clusters];
    const row = b * length + Math.floor((j * length) / clusters);
    initial.set(query.subarray(row * dim, (row + 1) * dim), i * dim);
  }
  return initial;
}

/** Σ ‖x − its centroid‖² in double precision. */
function inertiaOf(query, { batch, length, dim }, clusters, { centroids, labels }) {
  let sum = 0;
  for (let row = 0; row < batch * length; ++row) {
    const centroid = (Math.floor(row / length) * clusters + labels[row]) * dim;
    for (let d = 0; d < dim; ++d) sum += (query[row * dim + d] - centroids[centroid + d]) ** 2;
  }
  return sum;
}

/** How many of these rows are nearer to another centroid than to their own, beyond rounding. */
function misplaced(query, { length, dim }, clusters, { centroids, labels }, rows) {
  const distance = (row, cluster) => {
    const place = (Math.floor(row / length) * clusters + cluster) * dim;
    let sum = 0;
    for (let d = 0; d < dim; ++d) sum += (query[row * dim + d] - centroids[place + d]) ** 2;
    return sum;
  };
  return rows.filter((row) => {
    const own = distance(row, labels[row]) * (1 - 1e-5);
    return Array.from({ length: clusters }, (_, j) => distance(row, j)).some((d) => d < own);
  }).length;
}

function prepare(task) {
  const { threads, problem, parameters } = task.case;
  const { clusters, iterations } = parameters;
  setNumThreads(threads);
  const { query } = loadInputs(task.input);
  const { batch, heads, queryLength, headDim } = problem;
  const shape = { batch: batch * heads, length: queryLength, dim: headDim };
  const initial = startOf(query, shape, clusters);
  const run = () =>
    kMeansSync({ inputs: query, shape, clusters, iterations, tolerance: 0, initial });
  const result = run();
  const inertia = inertiaOf(query, shape, clusters, result);
  const reported = result.inertia.reduce((a, b) => a + b);
  const rows = Array.from({ length: task.rows }, (_, i) =>
    Math.floor((i * shape.batch * queryLength) / task.rows),
  );
  const accuracy = { rows: rows.length, rounding: Math.abs(reported / inertia - 1) };
  const wrong = misplaced(query, shape, clusters, result, rows);
  if (wrong > 0 || !(accuracy.rounding <= BOUND)) {
    const reason = `${wrong} rows are misplaced, inertia is off by ${accuracy.rounding.toExponential(1)}`;
    return { reply: { status: 'wrong', reason, accuracy }, run() {} };
  }
  const start = performance.now();
  run();
  const repeats = repeatsFor(performance.now() - start);
  const flop = countFlops('kmeans', problem, parameters, false);
  return {
    reply: { status: 'ready', accuracy, flop, repeats },
    run,
    peak: () => binding.measurePeak(),
  };
}

void serve(prepare);
