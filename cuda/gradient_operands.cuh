#pragma once

#include "cuda/gradient_operands.h"

namespace cluster_attention::cuda {

/// One element of an operand, both parts together.
__device__ inline float operand_element(const Operand& operand, int64_t batch, int64_t head,
                                        int64_t row, int64_t column) {
  const int64_t place =
      batch * operand.batch_stride + head * operand.head_stride + row * operand.row_stride + column;
  const float high = to_float(operand.high[place]);
  return operand.low == nullptr ? high : high + to_float(operand.low[place]);
}

}  // namespace cluster_attention::cuda
