// A float64 oracle of every operation, written from the definitions alone: slow, plain, and
// independent of the native code. Discrete choices (labels, top-k keys, clusters) come in ready,
// so that numbers can be compared given the same choices; the functions that make the choices
// stand beside them.

export * from './rows.mjs';
export * from './attention.mjs';
export * from './clustering.mjs';
export * from './sparse.mjs';
export * from './centroid.mjs';
export * from './cast.mjs';
