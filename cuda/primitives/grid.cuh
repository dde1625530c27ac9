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

}  // namespace cluster_attention::cuda
