#pragma once

#include "cuda/cluster_limits.h"

namespace cluster_attention::test {

/// Of a device whose multiprocessors are one group, with clusters of `fewest` .. `most` blocks.
inline cuda::ClusterLimits cluster_limits(int64_t multiprocessors, int64_t shared_bytes,
                                          int64_t fewest = 1,
                                          int64_t most = cuda::kMostClusterBlocks) {
  cuda::ClusterLimits limits;
  limits.multiprocessors = multiprocessors;
  limits.shared_bytes = shared_bytes;
  for (int64_t blocks = fewest; blocks <= most; ++blocks) {
    limits.resident[blocks - 1] = multiprocessors / blocks;
  }
  return limits;
}

inline const cuda::ClusterLimits kHopper = cluster_limits(132, 227 * 1024);

}  // namespace cluster_attention::test
