#pragma once

// Sums of weighted exponentials, and what divides by them, for the CPU and the GPU. Weights can be
// so large that a sum leaves the range of float32. The reciprocal of Inf would make zeros that look
// like a result: it is NaN here.

#include "native/core/host_device.h"

namespace cluster_attention {

/// Multiplier that turns a sum of weighted exponentials into shares; 0 for a row without logits.
CA_HOST_DEVICE inline float share_factor(float sum) {
  return sum == 0.0f ? 0.0f : 1.0f / sum + (sum - sum);
}

/// Multiplier that turns the sum of a centroid into the mean, 1 / (mass + 1e-6).
CA_HOST_DEVICE inline float mean_factor(double mass) {
  return static_cast<float>(1.0 / (mass + 1e-6) + (mass - mass));
}

}  // namespace cluster_attention
