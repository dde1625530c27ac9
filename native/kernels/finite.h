#pragma once

#include <cstdint>
#include <cstring>

namespace cluster_attention::kernels {

/// Whether none of the values is NaN or Inf.
inline bool all_finite(const float* values, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & kExponent) == kExponent ? 1u : 0u;
  }
  return bad == 0;
}

}  // namespace cluster_attention::kernels
