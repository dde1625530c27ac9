// Data with a known grouping.

import { normals, permutation } from './data.mjs';

/** Well separated groups around random centres far from the origin, in a random order. */
export function plantedQueries({ clusters, perCluster, dim, mean = 0, seed = 240 }) {
  const centres = normals(clusters * dim, seed, 2, mean);
  const noise = normals(clusters * perCluster * dim, seed + 1, 0.05);
  const planted = permutation(clusters * perCluster, seed + 2).map((i) => i % clusters);
  const query = noise.map((x, i) => {
    const group = planted[Math.floor(i / dim)];
    return x + centres[group * dim + (i % dim)];
  });
  return { query, planted };
}

/** Do two labellings put the same members together? */
export function samePartition(labels, other) {
  const forward = new Map();
  const backward = new Map();
  return labels.every((label, i) => {
    if (!forward.has(label)) forward.set(label, other[i]);
    if (!backward.has(other[i])) backward.set(other[i], label);
    return forward.get(label) === other[i] && backward.get(other[i]) === label;
  });
}
