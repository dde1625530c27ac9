#pragma once

// What the launchers of centroid attention, pooling and encoding share. No kernels here.

#include "cuda/assignment.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// How many tiles of queries a block keeps in shared memory: all of them where that leaves room for
/// another block, else one.
template <bool kSplit>
int assignment_query_tiles(const Session& session, int64_t dim) {
  constexpr int64_t kEnough = 110 * 1024;
  const int64_t room = session.shared_bytes() < kEnough ? session.shared_bytes() : kEnough;
  const int64_t tiles = tiles_of(dim);
  const bool fits =
      tiles <= 4 && assignment_layout<kSplit>(static_cast<int>(tiles), true).bytes <= room;
  return fits ? static_cast<int>(tiles) : 1;
}

/// Statistics where there may be more than one tile of centroids, then the sums of the parts.
Status launch_assignment(Session& session, const AssignmentParams& params, bool split);

}  // namespace cluster_attention::cuda
