#pragma once

// Steps 1-3 of CAST (§7): which tokens each cluster holds.
//
//   A_q = sum over heads of q S^T, A_k = sum over heads of k S^T       (N,C), fp32, heads in order
//   A_g = sigma(phi) f(A_q) + (1 - sigma(phi)) f(A_k), f over the clusters
//   Top-K: each cluster takes the kappa best tokens of its column.
//   Single assignment: tokens by descending best A_g; each goes to its best cluster with room.
//
// Then the inverse map, token -> (cluster, slot), so that step 7 gathers instead of scattering.

#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// Checks given indices (B,C,kappa): in -1..N-1, no token twice in a cluster. Padding is -1.
Status check_cast_indices(const CastAttentionProblem& problem, Context& context);

/// Packs the surrogates, once per call.
Status prepare_selection(const CastState& state);

/// Fills the gates, the members and the inverse map of the first `count` sequences of the group,
/// and the indices and coverage that the problem asks for.
Status select_members(const CastState& state, int64_t count);

/// Floats of scratch that a worker needs here.
int64_t affinity_scratch(const CastState& state);

}  // namespace cluster_attention::kernels
