#pragma once

// The online softmax (native/core/softmax_state.h) of 16 rows in the registers of a warp, in base
// 2: scores and output lie as products leave them (primitives/mma.cuh).

#include "cuda/primitives/exp2.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

/// scores -> weights relative to the new maximum, which `sum`, of the lane's own columns, follows;
/// what else was summed so far has to be multiplied by `factor`. Scores of -Inf are keys that the
/// row does not see.
template <int kScoreTiles>
__device__ void enter_softmax(float (&scores)[kScoreTiles][4], float (&maximum)[2], float (&sum)[2],
                              float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = maximum[half];
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
    }
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    factor[half] = SoftmaxState::shift(maximum[half], largest);
    const float base = largest == -HUGE_VALF ? 0.0f : largest;
    maximum[half] = largest;
    float entering = 0.0f;
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        scores[n][i] = exp2_fast(scores[n][i] - base);
        entering += scores[n][i];
      }
    }
    sum[half] = sum[half] * factor[half] + entering;
  }
}

template <int kOutputTiles>
__device__ void rescale(float (&output)[kOutputTiles][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kOutputTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) output[n][i] *= factor[i / 2];
  }
}

}  // namespace cluster_attention::cuda
