#pragma once

// Backward of steps 4 and 5 of CAST (cast_attention_gradient.h): attention within each cluster, and
// its summary.
//
// Method: queries in lanes, the cluster's gathered keys and values as rows, so that a tile holds
// whole columns of f and needs no saved log-sum-exp; five products per tile. The summary is one
// more query: the surrogate, weighted by the gate.

#include "native/kernels/cast_gradient_state.h"

namespace cluster_attention::kernels {

/// Of `count` pairs of the group, from pair `first` on: fills the slots' query, key, value, total
/// and gate, R_inter, and what step 5 adds to the gradients by the surrogates. Reads the slots'
/// weights and the summaries' gradients.
Status differentiate_clusters(const CastGradientState& state, int64_t first, int64_t count);

/// Floats of scratch that a worker needs here.
int64_t cluster_gradient_scratch(const CastGradientState& state);

}  // namespace cluster_attention::kernels
