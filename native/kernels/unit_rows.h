#pragma once

#include <cmath>
#include <cstdint>

namespace cluster_attention::kernels {

/// 1 / |row|, so that the float nearest to row[d] * inverse_length is an element of the unit row;
/// 0 for a row of zeros, which stays as it is. Double precision: no float row overflows it.
inline double inverse_length(const float* row, int64_t dim) {
  double sums[4] = {};
  for (int64_t d = 0; d < dim; ++d) sums[d & 3] += static_cast<double>(row[d]) * row[d];
  const double squared = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return squared == 0.0 ? 0.0 : 1.0 / std::sqrt(squared);
}

}  // namespace cluster_attention::kernels
