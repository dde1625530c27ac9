// One description of every operation, which the generic suites (arguments, hostile input, async,
// threads, batches, views) walk over. `minimal` are the fewest options that work, `typical` is a
// larger call with many options; both return fresh arrays on every call. `arguments` tells the
// kind of every option, with a valid value for those that `minimal` leaves out.

import { attentionOperations } from './operations/attention.mjs';
import { centroidOperations } from './operations/centroid.mjs';
import { clusteringOperations } from './operations/clustering.mjs';
import { matmulOperations } from './operations/matmul.mjs';
import { sparseOperations } from './operations/sparse.mjs';

export const operations = {
  ...attentionOperations,
  ...centroidOperations,
  ...clusteringOperations,
  ...sparseOperations,
  ...matmulOperations,
};
export const names = Object.keys(operations);

/** The options with one of them, named by its path ("shape.batch"), replaced. */
export function withOption(options, path, value) {
  const [first, second] = path.split('.');
  if (second === undefined) return { ...options, [first]: value };
  return { ...options, [first]: { ...options[first], [second]: value } };
}

export function optionAt(options, path) {
  return path.split('.').reduce((object, name) => object?.[name], options);
}

/** Paths and values of all arrays that a call reads. */
export function inputArrays(options) {
  return Object.entries(options).filter(
    ([name, value]) => ArrayBuffer.isView(value) && name !== 'out',
  );
}

/** All arrays of a result, by name; a bare array is the output. */
export function resultArrays(result) {
  return ArrayBuffer.isView(result) ? { output: result } : result;
}
