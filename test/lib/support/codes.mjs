// The `code` of every error that the package raises.

export const CODES = [
  'ERR_INVALID_ARG_TYPE',
  'ERR_OUT_OF_RANGE',
  'ERR_SHAPE_MISMATCH',
  'ERR_NON_FINITE',
  'ERR_UNSUPPORTED',
  'ERR_CUDA_UNAVAILABLE',
  'ERR_OUT_OF_MEMORY',
  'ERR_DEVICE_LOST',
  'ERR_BINDING_LOAD',
];
