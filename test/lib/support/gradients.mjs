// Every operation with gradients: small cases of odd sizes on which the oracle can be differentiated
// numerically. A case has `options()`, `oracle(options, result)` (the output in float64; `result` is
// what the package returned, for its discrete choices) and `of`, the options to differentiate by.

import { attentionGradients } from './gradients/attention.mjs';
import { castGradients } from './gradients/cast.mjs';
import { centroidGradients } from './gradients/centroid.mjs';
import { sparseGradients } from './gradients/sparse.mjs';

export const gradientCases = {
  ...attentionGradients,
  ...castGradients,
  ...centroidGradients,
  ...sparseGradients,
};
export const differentiable = Object.keys(gradientCases);

/** Σ gradOutput·output over what is finite: −Infinity stands for "no such entry". */
function loss(output, gradOutput) {
  let sum = 0;
  output.forEach((value, i) => {
    if (Number.isFinite(value)) sum += value * gradOutput[i];
  });
  return sum;
}

/** Central differences of the loss by every element of options[name], all in float64. */
export function finiteDifferences(oracle, options, name, gradOutput, epsilon = 1e-6) {
  const moved = Float64Array.from(options[name]);
  const at = (index, value) => {
    const before = moved[index];
    moved[index] = value;
    const result = loss(oracle({ ...options, [name]: moved }), gradOutput);
    moved[index] = before;
    return result;
  };
  // An input of weight 0 is removed: its weight has no gradient.
  const removed = (value) => name === 'weights' && value === 0;
  return moved.map((value, i) =>
    removed(value) ? 0 : (at(i, value + epsilon) - at(i, value - epsilon)) / (2 * epsilon),
  );
}
