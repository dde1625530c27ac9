#pragma once

// Selection by digits of eight bits: keys are counted by their digit, and the digit that holds the
// wanted rank is found.

#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

constexpr int kDigits = 256;

struct DigitChoice {
  int digit;
  int64_t before;  // keys of the digits before it
};

/// The first digit whose running count exceeds `rank`; all threads of the block call it.
/// `counts`: (kDigits) in shared memory, `scratch`: 2 elements. Both may be used again on return.
__device__ inline DigitChoice choose_digit(const int32_t* counts, int64_t rank, int64_t* scratch) {
  constexpr int kPerLane = kDigits / kWarp;
  __syncthreads();
  if (warp_index() == 0) {
    const int first = lane_index() * kPerLane;
    int64_t own = 0;
    for (int i = 0; i < kPerLane; ++i) own += counts[first + i];
    int64_t before = warp_exclusive_sum(own);
    if (before <= rank && rank < before + own) {
      int digit = first;
      while (rank - before >= counts[digit]) before += counts[digit++];
      scratch[0] = digit;
      scratch[1] = before;
    }
  }
  __syncthreads();
  const DigitChoice choice{static_cast<int>(scratch[0]), scratch[1]};
  __syncthreads();
  return choice;
}

}  // namespace cluster_attention::cuda
