#pragma once

// The largest of integers, one instruction on Hopper (DPX). Those of largest_of() may be floats,
// where only those above a positive bound matter: as integers they compare with it as they do
// themselves, and those below 0 lie below it.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

__device__ inline int largest_of(int a, int b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return __vimax3_s32(a, b, c);
#else
  const int larger = a > b ? a : b;
  return larger > c ? larger : c;
#endif
}

/// The same without a sign: of floats the one that lies furthest below 0, where there is one.
__device__ inline uint32_t largest_of(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return __vimax3_u32(a, b, c);
#else
  const uint32_t larger = a > b ? a : b;
  return larger > c ? larger : c;
#endif
}

/// The larger of a + b and c.
__device__ inline int larger_sum(int a, int b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return __viaddmax_s32(a, b, c);
#else
  return a + b > c ? a + b : c;
#endif
}

}  // namespace cluster_attention::cuda
