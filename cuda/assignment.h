#pragma once

// What the launchers of centroid attention, pooling and encoding share. No kernels here.

#include "cuda/assignment.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// How many 64-wide tiles of its rows a block keeps in shared memory: all of them, where
/// bytes_of(tiles) leaves room for another block, else one.
template <typename Bytes>
int resident_tiles(const Session& session, int64_t dim, const Bytes& bytes_of) {
  constexpr int64_t kEnough = 110 * 1024;
  const int64_t room = session.shared_bytes() < kEnough ? session.shared_bytes() : kEnough;
  const int64_t tiles = tiles_of(dim);
  const bool fits = tiles <= 4 && bytes_of(static_cast<int>(tiles)) <= room;
  return fits ? static_cast<int>(tiles) : 1;
}

template <bool kSplit>
int assignment_query_tiles(const Session& session, int64_t dim) {
  return resident_tiles(session, dim,
                        [](int tiles) { return assignment_layout<kSplit>(tiles, true).bytes; });
}

/// Statistics where there may be more than one tile of centroids, then the sums of the parts.
Status launch_assignment(Session& session, const AssignmentParams& params, bool split);

}  // namespace cluster_attention::cuda
