#pragma once

// Steps 4 and 5 of CAST (§7): attention within each cluster, and one summary of it.
//
//   R_intra = f(tau Q_g K_g^T) V_g
//   R_inter = f(tau (K_g s) * softplus1(-phi_g))^T V_g, s the cluster's surrogate
//
// Method: the members' keys and values are gathered block by block, once for a chunk of the
// cluster's queries; the first chunk adds them to the summary, a single row. fp32 accumulation,
// sums over keys are two-level (blocks of kKeyBlock).

#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// Fills pairs with R_intra, and inter, for `count` (sequence, head) pairs of the group, from pair
/// `first` on.
Status attend_within_clusters(const CastState& state, int64_t first, int64_t count);

/// Floats of scratch that a worker needs here.
int64_t cluster_scratch(const CastState& state);

}  // namespace cluster_attention::kernels
