#pragma once

// Sums in double that round where the CPU's do (lloyd.cc, unit_rows.h): no product is contracted
// into a fused multiply-add.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

__device__ inline double exact_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ inline float exact_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

/// Sum over d < count of term(d) in four interleaved parts; the rest of a division by four goes to
/// the first.
template <typename Term>
__device__ double sum_terms(int64_t count, Term&& term) {
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  int64_t d = 0;
  for (; d + 4 <= count; d += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] += term(d + j);
  }
  for (; d < count; ++d) sums[0] += term(d);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// The same sum by a block, whose first four threads take a part each; the result is for all.
/// `scratch`: 4 elements of shared memory, free again on return. What term() reads must be there.
template <typename Term>
__device__ double block_sum_terms(int64_t count, double* scratch, Term&& term) {
  const int part = static_cast<int>(threadIdx.x);
  if (part < 4) {
    double sum = 0.0;
    const int64_t whole = count / 4 * 4;
    for (int64_t d = part; d < whole; d += 4) sum += term(d);
    if (part == 0) {
      for (int64_t d = whole; d < count; ++d) sum += term(d);
    }
    scratch[part] = sum;
  }
  __syncthreads();
  const double total = (scratch[0] + scratch[1]) + (scratch[2] + scratch[3]);
  __syncthreads();
  return total;
}

/// 1 / |row|, 0 for a row of zeros; element(d) is an element of it. Products of two floats are
/// exact in double.
template <typename Element>
__device__ double inverse_length(int64_t dim, Element&& element) {
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  for (int64_t d = 0; d < dim; d += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (d + j >= dim) break;
      const double value = element(d + j);
      sums[j] += exact_product(value, value);
    }
  }
  const double squared = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return squared == 0.0 ? 0.0 : 1.0 / sqrt(squared);
}

}  // namespace cluster_attention::cuda
