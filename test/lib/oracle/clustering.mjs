// Hashing, k-means in Hamming and Euclidean space, aggregate and broadcast.

import { addScaled, bestOf, dot, rowsAt, squaredDistance, weightedSum } from './rows.mjs';

/** x·plane_b − threshold_b for every row and bit, (rows,bits); bit b is set where it is > 0. */
export function hashMargins(inputs, planes, { rows, dim, bits }) {
  const margins = new Float64Array(rows * bits);
  rowsAt(inputs, 0, rows, dim).forEach((x, row) => {
    rowsAt(planes, 0, bits, dim + 1).forEach((plane, bit) => {
      margins[row * bits + bit] = dot(x, plane.subarray(0, dim)) - plane[dim];
    });
  });
  return margins;
}

export function hash(inputs, planes, shape) {
  const margins = hashMargins(inputs, planes, shape);
  return BigUint64Array.from({ length: shape.rows }, (_, row) => {
    let word = 0n;
    for (let bit = 0; bit < shape.bits; ++bit) {
      if (margins[row * shape.bits + bit] > 0) word |= 1n << BigInt(bit);
    }
    return word;
  });
}

export function popcount(word) {
  let count = 0;
  for (let rest = word; rest !== 0n; rest &= rest - 1n) ++count;
  return count;
}

/**
 * The loop that both kinds of k-means share: assign, stop or update, end on an assignment. Without
 * points there is nothing to update.
 */
function lloyd(points, start, iterations, { nearest, update, moved = () => Infinity, limit = -1 }) {
  let centroids = start;
  let labels = points.map((point) => nearest(point, centroids));
  let updates = 0;
  let settled = points.length === 0;
  while (updates < iterations && !settled) {
    const members = centroids.map((_centroid, cluster) =>
      points.filter((_point, i) => labels[i] === cluster),
    );
    const next = centroids.map((centroid, cluster) =>
      members[cluster].length === 0 ? centroid : update(members[cluster], centroid),
    );
    settled = moved(centroids, next) <= limit;
    centroids = next;
    updates += 1;
    const again = points.map((point) => nearest(point, centroids));
    settled ||= again.every((label, i) => label === labels[i]);
    labels = again;
  }
  return { centroids, labels, updates };
}

/** K-means in Hamming space over one sequence of hashes, from given centroids. */
export function hammingKMeans(hashes, initial, iterations, bits = 64) {
  const nearest = (word, centroids) => bestOf(centroids.map((c) => -popcount(c ^ word)));
  const update = (members) => {
    let centroid = 0n;
    for (let bit = 0n; bit < BigInt(bits); ++bit) {
      const set = members.filter((word) => (word >> bit) & 1n).length;
      if (2 * set > members.length) centroid |= 1n << bit;
    }
    return centroid;
  };
  return lloyd(Array.from(hashes), Array.from(initial), iterations, { nearest, update });
}

const normalised = (row) => {
  const length = Math.sqrt(dot(row, row));
  return length === 0 ? row : row.map((value) => value / length);
};
const isZero = (row) => row.every((value) => value === 0);

/** Mean over the columns of their variances, the unit of the tolerance. */
function meanVariance(points) {
  if (points.length === 0) return 0;
  const mean = weightedSum(
    points.map(() => 1 / points.length),
    points,
    points[0].length,
  );
  return (
    points.reduce((sum, point) => sum + squaredDistance(point, mean), 0) /
    (points.length * mean.length)
  );
}

/** Lloyd's k-means over the rows of one sequence, from given centroids. */
export function kMeans(rows, initial, { iterations = 300, tolerance = 0, metric = 'euclidean' }) {
  const cosine = metric === 'cosine';
  const points = cosine ? rows.map(normalised) : rows;
  const start = cosine ? initial.map(normalised) : initial;
  const closeness = cosine ? dot : (a, b) => -squaredDistance(a, b);
  const result = lloyd(points, start, iterations, {
    nearest: (point, centroids) => bestOf(centroids.map((c) => closeness(c, point))),
    update: (members, old) => {
      const mean = weightedSum(
        members.map(() => 1 / members.length),
        members,
        old.length,
      );
      if (!cosine) return mean;
      return isZero(mean) ? old : normalised(mean);
    },
    moved: (before, after) =>
      before.reduce((sum, centroid, j) => sum + squaredDistance(centroid, after[j]), 0),
    limit: tolerance > 0 ? tolerance * meanVariance(points) : -1,
  });
  const inertia = points.reduce((sum, point, i) => {
    const centroid = result.centroids[result.labels[i]];
    return sum + (cosine ? 1 - dot(point, centroid) : squaredDistance(point, centroid));
  }, 0);
  return { ...result, inertia };
}

/** Mean or sum of the member rows of each cluster, (batch,C,dim); 0 for an empty cluster. */
export function aggregate({ inputs, labels, shape, clusters, reduce = 'mean' }) {
  const { batch, length, dim } = shape;
  const output = new Float64Array(batch * clusters * dim);
  const counts = new Float64Array(batch * clusters);
  rowsAt(inputs, 0, batch * length, dim).forEach((row, i) => {
    if (labels[i] < 0) return;
    const cluster = Math.floor(i / length) * clusters + labels[i];
    counts[cluster] += 1;
    addScaled(output.subarray(cluster * dim, (cluster + 1) * dim), 1, row);
  });
  if (reduce === 'sum') return output;
  return output.map((sum, i) => (sum === 0 ? 0 : sum / counts[Math.floor(i / dim)]));
}

/** Each row takes its cluster's row, (batch,length,dim); 0 for label −1. */
export function broadcast({ inputs, labels, shape, clusters }) {
  const { batch, length, dim } = shape;
  const output = new Float64Array(batch * length * dim);
  for (let i = 0; i < batch * length; ++i) {
    if (labels[i] < 0) continue;
    const cluster = Math.floor(i / length) * clusters + labels[i];
    output.set(inputs.subarray(cluster * dim, (cluster + 1) * dim), i * dim);
  }
  return output;
}
