#pragma once

#include <algorithm>
#include <cstdint>

#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// simd().multiply() in blocks of the depth, whose sums are added in order: a long chain of floats
/// loses digits.
inline void multiply_in_blocks(const float* a, int64_t a_row, int64_t a_depth, int64_t rows,
                               int64_t depth, const float* b, int64_t b_stride, int64_t columns,
                               float* product, int64_t product_stride, bool accumulate) {
  int64_t k = 0;
  do {
    simd().multiply(a + k * a_depth, a_row, a_depth, rows, std::min(kKeyBlock, depth - k),
                    b + k * b_stride, b_stride, columns, product, product_stride,
                    accumulate || k > 0);
    k += kKeyBlock;
  } while (k < depth);
}

}  // namespace cluster_attention::kernels
