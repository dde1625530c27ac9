#pragma once

// 2^x by the one instruction that GPUs have for it; exp2f scales arguments below -126 besides, so
// that results too small for a normal number keep their bits, for three instructions more.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// 2^x to 2 ulp; 0 where that is below 2^-126, and for -Inf.
__device__ inline float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

}  // namespace cluster_attention::cuda
