#pragma once

// Grids whose blocks all run at the same time, and wait for each other. A launch asks for them by
// launch_together().

#include "cuda/primitives/platform.cuh"

#if !defined(CA_CUDA_MODEL)
#include <cooperative_groups.h>
#endif

namespace cluster_attention::cuda {

/// Every thread of every block of the grid calls it; what each wrote to device memory before is
/// seen by all after it.
__device__ inline void sync_grid() {
#if defined(CA_CUDA_MODEL)
  cuda_model::sync_grid();
#else
  cooperative_groups::this_grid().sync();
#endif
}

/// What one launch makes of draws that all blocks wait for, one after the other.
struct DrawRange {
  int64_t begin;
  int64_t end;
};

/// body(i) for this block's share of 0 .. count - 1, as a block of a grid of `count` would call it;
/// it may return early.
template <typename Body>
__device__ void for_blocks(int64_t count, const Body& body) {
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    body(i);
    __syncthreads();  // shared memory is used again
  }
}

}  // namespace cluster_attention::cuda
