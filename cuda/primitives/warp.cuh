#pragma once

// Warps and blocks. Every lane of the warp (every thread of the block) calls these together; the
// result is the same in all of them. Sums run in a fixed order.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

template <typename T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
/// Of the lane `distance` before; the first lanes keep their own.
template <typename T>
__device__ inline T shuffle_up(T value, int distance) {
  return __shfl_up_sync(kAllLanes, value, distance);
}
__device__ inline unsigned ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
__device__ inline bool any(bool predicate) { return __any_sync(kAllLanes, predicate) != 0; }

/// Joins the values of groups of `width` neighbouring lanes (a power of two) by a commutative
/// combine(a, b).
template <typename T, typename Combine>
__device__ inline T warp_reduce(T value, Combine combine, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) {
    value = combine(value, shuffle_xor(value, mask));
  }
  return value;
}
template <typename T>
__device__ inline T warp_sum(T value, int width = kWarp) {
  return warp_reduce(
      value, [](T a, T b) { return a + b; }, width);
}
template <typename T>
__device__ inline T warp_max(T value, int width = kWarp) {
  return warp_reduce(
      value, [](T a, T b) { return a > b ? a : b; }, width);
}
/// The larger of two, NaN when either is.
__device__ inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

/// Sum over the lanes before this one.
template <typename T>
__device__ inline T warp_exclusive_sum(T value) {
  T sum = value;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T before = shuffle_up(sum, distance);
    if (lane_index() >= distance) sum += before;
  }
  return sum - value;
}

/// Joins the values of all threads of a one-dimensional block of whole warps. `scratch`: 32
/// elements of shared memory, free again on return.
template <typename T, typename Combine>
__device__ inline T block_reduce(T value, Combine combine, T* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_reduce(value, combine);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  T result = scratch[0];
  for (int warp = 1; warp < warps; ++warp) result = combine(result, scratch[warp]);
  __syncthreads();
  return result;
}
template <typename T>
__device__ inline T block_sum(T value, T* scratch) {
  return block_reduce(
      value, [](T a, T b) { return a + b; }, scratch);
}

/// Sum over the threads of the block before this one; *total gets the sum over all.
template <typename T>
__device__ inline T block_exclusive_sum(T value, T* scratch, T* total) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const T before = warp_exclusive_sum(value);
  if (lane_index() == kWarp - 1) scratch[warp_index()] = before + value;
  __syncthreads();
  T offset = 0;
  T sum = 0;
  for (int warp = 0; warp < warps; ++warp) {
    if (warp == warp_index()) offset = sum;
    sum += scratch[warp];
  }
  __syncthreads();
  *total = sum;
  return offset + before;
}

}  // namespace cluster_attention::cuda
