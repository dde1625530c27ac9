#pragma once

#include <vector>

#include "cuda/cluster_limits.h"
#include "cuda/session.h"
#include "test/cuda/device.h"

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

/// The limits with and, where the device has them, without products of warpgroups.
inline std::vector<cuda::ClusterLimits> with_and_without_warpgroups(cuda::ClusterLimits limits) {
  std::vector<cuda::ClusterLimits> all{limits};
  limits.warpgroup_hamming = true;
  if (Device().session()->has_warpgroup_products()) all.push_back(limits);
  return all;
}

}  // namespace cluster_attention::test
