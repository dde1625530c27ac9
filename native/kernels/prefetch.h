#pragma once

#include <cstdint>

namespace cluster_attention::kernels {

/// Rows that a loop over listed rows asks for ahead of their use: they lie anywhere, which no
/// hardware prefetcher foresees.
constexpr int64_t kPrefetchRows = 8;

inline void prefetch_row(const float* row, int64_t dim) {
  constexpr int64_t kCacheLine = 64 / sizeof(float);
  for (int64_t d = 0; d < dim; d += kCacheLine) __builtin_prefetch(row + d);
}

}  // namespace cluster_attention::kernels
