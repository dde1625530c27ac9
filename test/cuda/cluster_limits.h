#pragma once

#include <algorithm>
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

/// What of the limits the device has: none of the clusters that it does not run, and no more shared
/// memory.
inline cuda::ClusterLimits runnable(cuda::ClusterLimits limits) {
  const Device device;
  limits.shared_bytes = std::min(limits.shared_bytes, device.session()->shared_bytes());
  for (int64_t blocks = 1; blocks <= cuda::kMostClusterBlocks; ++blocks) {
    if (device.session()->limits().resident_clusters(blocks) == 0) limits.resident[blocks - 1] = 0;
  }
  return limits;
}

/// Whether the device has all that those limits say.
inline bool has_all_of_hopper() {
  const cuda::ClusterLimits limits = runnable(kHopper);
  return limits.shared_bytes == kHopper.shared_bytes && limits.resident_clusters(16) > 0;
}

/// Whether the device runs clusters of more than one block.
inline bool has_clusters() { return Device().session()->limits().resident_clusters(2) > 0; }

/// Of the numbers of blocks, those of which the device runs clusters.
inline std::vector<int64_t> runnable_blocks(const std::vector<int64_t>& all) {
  std::vector<int64_t> runs;
  const Device device;
  for (int64_t blocks : all) {
    if (device.session()->limits().resident_clusters(blocks) > 0) runs.push_back(blocks);
  }
  return runs;
}

/// The limits with and, where the device has them, without products of warpgroups.
inline std::vector<cuda::ClusterLimits> with_and_without_warpgroups(cuda::ClusterLimits limits) {
  std::vector<cuda::ClusterLimits> all{limits};
  limits.warpgroup_hamming = true;
  if (Device().session()->has_warpgroup_products()) all.push_back(limits);
  return all;
}

}  // namespace cluster_attention::test
