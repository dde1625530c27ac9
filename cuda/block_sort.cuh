#pragma once

// Sorting and selecting by one block.

#include "cuda/primitives/warp.cuh"
#include "native/core/order.h"

namespace cluster_attention::cuda {

CA_HOST_DEVICE inline int64_t next_power_of_two(int64_t count) {
  int64_t power = 1;
  while (power < count) power *= 2;
  return power;
}

/// Bitonic sort of a power of two of values, largest first, in shared or device memory. The values
/// must be visible to all threads; they are sorted for all on return.
template <typename T>
__device__ void sort_descending(T* values, int64_t count) {
  for (int64_t size = 2; size <= count; size *= 2) {
    for (int64_t distance = size / 2; distance > 0; distance /= 2) {
      for (int64_t i = threadIdx.x; i < count / 2; i += blockDim.x) {
        const int64_t within = i & (distance - 1);
        const int64_t low = 2 * (i - within) + within;
        const int64_t high = low + distance;
        const T a = values[low];
        const T b = values[high];
        const bool descending = (low & size) == 0;
        if ((a < b) == descending) {
          values[low] = b;
          values[high] = a;
        }
      }
      // The pairs of a warp, up to 32 values apart, are of the same 64 values.
      const int64_t next = distance > 1 ? distance / 2 : size;
      if (distance <= kWarp && next <= kWarp) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }
  }
  __syncthreads();
}

/// Scratch of select_largest().
struct SelectionScratch {
  int32_t histogram[256];
  int32_t scan[kWarp];
  int32_t chosen;
  int32_t remaining;
  int32_t above;
};

/// The `count` best of `length` scores in the common order (native/core/order.h), as candidates in
/// any order: radix selection of the score that the last one has, then the lowest indices that have
/// it. 1 <= count <= length < 2^31. All threads of a one-dimensional block call it; the candidates
/// are visible to all on return.
__device__ inline void select_largest(const float* scores, int64_t length, int64_t count,
                                      unsigned long long* candidates, SelectionScratch& scratch) {
  uint32_t prefix = 0;
  if (threadIdx.x == 0) {
    scratch.remaining = static_cast<int32_t>(count);
    scratch.above = 0;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) scratch.histogram[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
      const uint32_t key = ordered_key(scores[i]);
      if (shift == 24 || key >> (shift + 8) == prefix) {
        atomicAdd(&scratch.histogram[key >> shift & 255], 1);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int32_t remaining = scratch.remaining;
      int bin = 255;
      while (bin > 0 && scratch.histogram[bin] < remaining) remaining -= scratch.histogram[bin--];
      scratch.chosen = bin;
      scratch.remaining = remaining;
    }
    __syncthreads();
    prefix = prefix << 8 | static_cast<uint32_t>(scratch.chosen);
  }
  const int32_t ties = scratch.remaining;
  const int32_t above = static_cast<int32_t>(count) - ties;
  int32_t taken = 0;
  for (int64_t first = 0; first < length; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    const uint32_t key = i < length ? ordered_key(scores[i]) : 0;
    if (i < length && key > prefix) {
      candidates[atomicAdd(&scratch.above, 1)] = make_candidate(scores[i], static_cast<int32_t>(i));
    }
    if (taken >= ties) continue;
    int32_t total = 0;
    const bool tied = i < length && key == prefix;
    const int32_t rank = taken + block_exclusive_sum<int32_t>(tied ? 1 : 0, scratch.scan, &total);
    if (tied && rank < ties) {
      candidates[above + rank] = make_candidate(scores[i], static_cast<int32_t>(i));
    }
    taken += total;
  }
  __syncthreads();
}

}  // namespace cluster_attention::cuda
