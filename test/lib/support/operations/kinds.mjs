// The kinds of options, from which the suites derive what must be refused.

export const array = (type, more = {}) => ({ kind: 'array', type, ...more });
export const floats = (valid, more) => array(Float32Array, { valid, ...more });
export const ints = (valid, low, high, more) => array(Int32Array, { valid, low, high, ...more });
export const size = (low, more = {}) => ({ kind: 'size', low, ...more });
export const number = (more = {}) => ({ kind: 'number', ...more });
export const boolean = { kind: 'boolean' };
export const choice = (...values) => ({ kind: 'choice', values });

export const callArguments = {
  device: choice('auto', 'cpu'),
  precision: choice('float32', 'bfloat16'),
  nonFinite: choice('error', 'propagate'),
};

/** Sizes of `shape`: a wrong one does not fit the arrays. */
export const shapeArguments = (...names) =>
  Object.fromEntries(names.map((name) => [`shape.${name}`, size(0, { fits: true })]));
