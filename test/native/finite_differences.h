#pragma once

// Gradients by differences of the double-precision reference, which reads float32 inputs: values on
// a coarse grid, moved by exact float32 steps, so that only the formula's own error is left.

#include <cmath>
#include <cstdint>
#include <vector>

namespace cluster_attention::test {

/// Rounds to the grid of 2^-8.
inline void round_to_grid(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = std::round(values[i] * 256.0f) / 256.0f;
}

/// df / d*element by the central difference of five points; its error is 1e-12 times the fifth
/// derivative. `f` reads *element, which lies on the grid.
template <typename Function>
double finite_difference(float* element, Function f) {
  constexpr float kStep = 0x1p-10f;
  const float centre = *element;
  const auto at = [&](float steps) {
    *element = centre + steps * kStep;
    const double value = f();
    *element = centre;
    return value;
  };
  const double step = static_cast<double>(kStep);
  return (8.0 * (at(1.0f) - at(-1.0f)) - (at(2.0f) - at(-2.0f))) / (12.0 * step);
}

/// The gradient by all `count` elements.
template <typename Function>
std::vector<double> finite_differences(float* elements, int64_t count, Function f) {
  std::vector<double> gradient;
  for (int64_t i = 0; i < count; ++i) gradient.push_back(finite_difference(elements + i, f));
  return gradient;
}

/// sum_i weights[i] * values[i]: makes a scalar of an output, whose gradient the weights are.
inline double weighted_sum(const std::vector<double>& values, const std::vector<float>& weights) {
  double sum = 0.0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * static_cast<double>(weights[i]);
  return sum;
}

}  // namespace cluster_attention::test
