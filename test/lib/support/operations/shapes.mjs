// The shapes that the calls of the attention kinds use.

export const SHAPE = { batch: 2, heads: 2, queryLength: 5, keyLength: 6, headDim: 4, valueDim: 3 };
export const TYPICAL_SHAPE = {
  batch: 3,
  heads: 2,
  queryLength: 67,
  keyLength: 131,
  headDim: 24,
  valueDim: 19,
};
export const typicalLengths = () => ({
  queryLengths: Int32Array.of(67, 31, 1),
  keyLengths: Int32Array.of(131, 7, 64),
});
export const SELF = { batch: 2, heads: 2, queryLength: 6, headDim: 4, valueDim: 3 };
export const TYPICAL_SELF = { batch: 3, heads: 2, queryLength: 71, headDim: 24, valueDim: 19 };
