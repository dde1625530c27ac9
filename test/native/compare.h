#pragma once

// Compares float32 results with the double-precision reference: first the places of NaN and Inf,
// then the relative L2 error against a bound, and on failure the worst index with both values.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "test/native/harness.h"

namespace cluster_attention::test {

/// What fp32 kernels must reach for sequences up to 4096.
constexpr double kRelativeL2 = 3e-6;

/// By how much bounds are widened: among thousands of made cases some are worse conditioned than
/// any of the table (one pair of rows, nearly all cancelled).
inline double& bound_factor() {
  static double factor = 1.0;
  return factor;
}

inline double norm(const std::vector<double>& values) {
  double squared = 0.0;
  for (double value : values) squared += value * value;
  return std::sqrt(squared);
}

/// Empty when `actual` is close enough to `expected`, else what is wrong with it. `magnitude` is
/// the norm of what cancels in `expected`, where the norm of `expected` itself may be smaller.
template <typename T>
std::string difference(const std::vector<T>& actual, const std::vector<double>& expected,
                       double bound = kRelativeL2, double magnitude = 0.0) {
  bound *= bound_factor();
  std::ostringstream message;
  message.precision(9);
  if (actual.size() != expected.size()) {
    message << "has " << actual.size() << " elements, expected " << expected.size();
    return message.str();
  }
  double squared_error = 0.0;
  double squared_norm = 0.0;
  double worst = -1.0;
  size_t worst_index = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]);
    const double e = expected[i];
    if (!std::isfinite(a) || !std::isfinite(e)) {
      if (a == e || (std::isnan(a) && std::isnan(e))) continue;
      message << "[" << i << "] is " << a << ", expected " << e;
      return message.str();
    }
    squared_error += (a - e) * (a - e);
    squared_norm += e * e;
    if (std::abs(a - e) > worst) {
      worst = std::abs(a - e);
      worst_index = i;
    }
  }
  const double error = std::sqrt(squared_error);
  const double scale = std::max(std::sqrt(squared_norm), magnitude);
  if (scale > 0.0) record_error(error / scale, bound);
  // Where everything expected is 0 and nothing cancels, only 0 is right.
  if (error <= bound * scale) return "";
  message << "relative L2 error " << error / scale << " > " << bound << ", worst at ["
          << worst_index << "]: " << actual[worst_index] << ", expected " << expected[worst_index];
  return message.str();
}

/// Empty when all elements are equal.
template <typename A, typename B>
std::string inequality(const std::vector<A>& actual, const std::vector<B>& expected) {
  std::ostringstream message;
  if (actual.size() != expected.size()) {
    message << "has " << actual.size() << " elements, expected " << expected.size();
    return message.str();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    message << "[" << i << "] is " << actual[i] << ", expected " << expected[i];
    return message.str();
  }
  return "";
}

}  // namespace cluster_attention::test

#define CHECK_TEXT_(what, text)                                                  \
  do {                                                                           \
    const std::string ca_difference_ = text;                                     \
    if (!ca_difference_.empty()) {                                               \
      ::cluster_attention::test::fail(__FILE__, __LINE__,                        \
                                      std::string(what) + " " + ca_difference_); \
    }                                                                            \
  } while (0)
/// CHECK_CLOSE(actual, expected[, bound[, magnitude]]), CHECK_SAME(actual, expected): whole
/// vectors.
#define CHECK_CLOSE(actual, ...) \
  CHECK_TEXT_(#actual, ::cluster_attention::test::difference(actual, __VA_ARGS__))
#define CHECK_SAME(actual, expected) \
  CHECK_TEXT_(#actual, ::cluster_attention::test::inequality(actual, expected))
