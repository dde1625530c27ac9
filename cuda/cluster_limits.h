#pragma once

// What plans for clusters of blocks need to know of a device.

#include <cstdint>

#include "native/core/shape.h"

namespace cluster_attention::cuda {

/// Blocks of the largest cluster of any device.
constexpr int64_t kMostClusterBlocks = 16;

struct ClusterLimits {
  int64_t multiprocessors = 1;
  int64_t shared_bytes = 48 * 1024;  // of a block
  /// Hashes are grouped by hamming_warpgroups.cuh. Left out where there are such products (Hopper)
  /// until it has been measured there.
  bool warpgroup_hamming = false;
  /// Clusters of i + 1 blocks that run at once, each block with a multiprocessor of its own.
  /// Clusters stay within groups of multiprocessors, which are not all of one size: of 132, seven
  /// clusters of 16 may run, but not eight.
  int64_t resident[kMostClusterBlocks] = {};

  int64_t resident_clusters(int64_t blocks) const { return resident[blocks - 1]; }
};

/// Blocks to share each of `sequences` out to, 0 where no number fits(blocks): those that are done
/// first where clusters that do not run at once take turns, and a block takes the time of its rows
/// and of overhead(blocks) more.
template <typename Overhead, typename Fits>
int64_t choose_cluster_blocks(int64_t sequences, int64_t length, const ClusterLimits& limits,
                              Overhead overhead, Fits fits) {
  int64_t best = 0;
  int64_t least = INT64_MAX;
  for (int64_t blocks = 1; blocks <= kMostClusterBlocks; ++blocks) {
    const int64_t resident = limits.resident_clusters(blocks);
    if (resident == 0 || !fits(blocks)) continue;
    const int64_t turns = divide_up(sequences, resident);
    const int64_t time = turns * (divide_up(length, blocks) + overhead(blocks));
    if (time < least) {
      least = time;
      best = blocks;
    }
  }
  return best;
}

}  // namespace cluster_attention::cuda
