#pragma once

#include "cuda/operands.h"

namespace cluster_attention::cuda {

/// Queries and the gradients of their outputs, or keys and values.
struct OperandPair {
  Operand first;
  Operand second;
};

}  // namespace cluster_attention::cuda
