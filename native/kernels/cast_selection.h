#pragma once

// Step 3 of CAST (§7): which tokens each cluster holds, by A_g of steps 1 and 2.
//
//   Top-K: each cluster takes the kappa best tokens of its column.
//   Single assignment: tokens by descending best A_g; each goes to its best cluster with room.
//
// Then the inverse map, token -> (cluster, slot), so that step 7 gathers instead of scattering.

#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// Checks given indices (B,C,kappa): in -1..N-1, no token twice in a cluster. Padding is -1.
Status check_cast_indices(const CastAttentionProblem& problem, Context& context);

/// What the selections of all groups share, once per call.
Status prepare_selection(const CastState& state);

/// Fills the gates, the members and the inverse map of the first `count` sequences of the group,
/// and the indices and coverage that the problem asks for.
Status select_members(const CastState& state, int64_t count);

}  // namespace cluster_attention::kernels
