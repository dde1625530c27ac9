#pragma once

#include <cstdint>

#include "native/core/context.h"
#include "native/kernels/active_inputs.h"

namespace cluster_attention::kernels {

/// What find_neighbor_lists() reads.
struct NeighborProblem {
  int64_t batch = 0;
  int64_t centroids = 0;                      // M
  int64_t length = 0;                         // N
  int64_t slots = 0;                          // K
  const int32_t* neighbors = nullptr;         // (batch,M,K), -1 is none
  const int32_t* centroid_lengths = nullptr;  // (batch), null: all M are real
};

/// The lists of neighbors as sets: each active input once per centroid, in the order in which it is
/// first mentioned. A place is centroid * K + slot, within a batch entry.
struct NeighborLists {
  int64_t centroids = 0;            // M
  int64_t length = 0;               // N
  int64_t slots = 0;                // K
  const int32_t* inputs = nullptr;  // (batch,M,K), the first counts[b][j] of a list are set
  const int32_t* counts = nullptr;  // (batch,M), 0 for a padded centroid
  // The same pairs by input: which places list it, ascending, so centroids ascend too.
  const int64_t* offsets = nullptr;  // (batch,N+1)
  const int64_t* places = nullptr;   // (batch,M*K)

  const int32_t* list(int64_t batch, int64_t centroid) const {
    return inputs + (batch * centroids + centroid) * slots;
  }
  int64_t count(int64_t batch, int64_t centroid) const {
    return counts[batch * centroids + centroid];
  }
  const int64_t* places_of(int64_t batch, int64_t input) const {
    return places + batch * centroids * slots + offsets[batch * (length + 1) + input];
  }
  int64_t listings(int64_t batch, int64_t input) const {
    const int64_t* offset = offsets + batch * (length + 1) + input;
    return offset[1] - offset[0];
  }
};

/// An index outside -1..N-1 in the list of a real centroid is Status out_of_range of "neighbors".
Status find_neighbor_lists(const NeighborProblem& problem, const ActiveInputs& active,
                           Context& context, NeighborLists& lists);

}  // namespace cluster_attention::kernels
