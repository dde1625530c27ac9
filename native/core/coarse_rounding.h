#pragma once

#include <cmath>

#include "native/core/host_device.h"

namespace cluster_attention {

/// An origin near `mean` for numbers at most `spread` away from it: the nearest multiple of a power
/// of two that is an eighth to a quarter of the mean, or half of the spread to all of it where that
/// is more. Differences of such an origin and short binary fractions are short too, so that exact
/// ties between distances stay ties, also where a product takes 16 bits of each. 0 where that is no
/// number: a centroid that is NaN shall not reach the others by the origin.
CA_HOST_DEVICE inline float round_coarsely(double mean, double spread) {
  int exponent = 0;
  std::frexp(mean, &exponent);
  exponent -= 3;
  if (spread > 0.0) {
    int wide = 0;
    std::frexp(spread, &wide);
    if (wide - 1 > exponent) exponent = wide - 1;
  }
  const double steps = std::nearbyint(std::ldexp(mean, -exponent));
  const auto rounded = static_cast<float>(std::ldexp(steps, exponent));
  return rounded - rounded == 0.0f ? rounded : 0.0f;
}

}  // namespace cluster_attention
