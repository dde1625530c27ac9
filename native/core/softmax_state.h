#pragma once

// The online softmax over one row: a running maximum, the sum of exponentials relative to it, and
// (kept by the caller) an output scaled like the sum. Everything is in base 2: a logit z enters as
// z * log2(e). The maximum of no logits is -Inf; this file is the only place that meets
// -Inf - -Inf.

#include <cmath>
#include <limits>

#include "native/core/host_device.h"

namespace cluster_attention {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.693147180559945309417;

struct SoftmaxState {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;

  /// Factors by which two partial outputs are multiplied before they are added.
  struct Factors {
    float mine;
    float other;
  };

  /// Joins the state of other logits of the same row. A state without logits changes nothing.
  CA_HOST_DEVICE Factors merge(const SoftmaxState& other) {
    const float joint = maximum > other.maximum ? maximum : other.maximum;
    const Factors factors{shift(maximum, joint), shift(other.maximum, joint)};
    maximum = other.maximum != other.maximum ? other.maximum : joint;  // NaN stays NaN
    sum = sum * factors.mine + other.sum * factors.other;
    return factors;
  }

  /// Multiplier that turns the summed output into the mean; 0 for a row without logits.
  CA_HOST_DEVICE float normalizer() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }

  /// Natural log of the sum of exp(logits); -Inf for a row without logits.
  CA_HOST_DEVICE float logsumexp() const {
    if (sum == 0.0f) return -std::numeric_limits<float>::infinity();
    return static_cast<float>((static_cast<double>(maximum) + std::log2(static_cast<double>(sum))) *
                              kLn2);
  }

  /// 2^(from - to), with a row without logits (from = -Inf) contributing nothing.
  CA_HOST_DEVICE static float shift(float from, float to) {
    return from == -std::numeric_limits<float>::infinity() ? 0.0f : std::exp2(from - to);
  }
};

/// Largest size of a saved log-sum-exp from which weights can be computed again: its rounding, and
/// that of the logits, changes them by up to 1 % there.
constexpr float kLargestSaved = 65536.0f;

/// A saved log-sum-exp in base 2, as backwards subtract it from logits. NaN where those are so
/// large that nothing true could be computed; -Inf, of a row without logits, stays.
CA_HOST_DEVICE inline float saved_in_base2(float logsumexp) {
  const bool large =
      logsumexp > kLargestSaved ||
      (logsumexp < -kLargestSaved && logsumexp != -std::numeric_limits<float>::infinity());
  return large ? std::numeric_limits<float>::quiet_NaN() : logsumexp * kLog2E;
}

}  // namespace cluster_attention
