#pragma once

// Values that the compiler takes for new ones. Products take their operands from registers side by
// side. Where values lie elsewhere, or one is wanted in two places, the compiler copies them for
// each product again, unless the copy is a value of its own.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// The value, apart from equal ones.
__device__ inline int32_t opaque(int32_t value) {
#if !defined(CA_CUDA_MODEL)
  asm volatile("mov.b32 %0, %0;" : "+r"(value));
#endif
  return value;
}

/// The value in another register than it came in: the assembler looks through moves, but not
/// through a `zero` of which it does not know that it is one, such as a kernel's parameter.
__device__ inline uint32_t moved(uint32_t value, uint32_t zero) { return value ^ zero; }

}  // namespace cluster_attention::cuda
