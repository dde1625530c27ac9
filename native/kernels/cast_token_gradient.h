#pragma once

// Backward of steps 6 and 7 of CAST (cast_attention_gradient.h): how every token weighs the
// clusters.

#include "native/kernels/cast_gradient_state.h"

namespace cluster_attention::kernels {

/// Of `count` pairs of the group, from pair `first` on: A_sum into the slots' weights, and the
/// gradients by R_inter, in parts of the tokens.
Status find_summary_gradients(const CastGradientState& state, int64_t first, int64_t count);

/// Writes the gradients by query, key and value, which the slots and R_inter now determine, and
/// what each pair adds to those by the surrogates (step 6) and by the gate. Padding gets 0.
Status differentiate_tokens(const CastGradientState& state, int64_t first, int64_t count);

/// Floats of scratch that a worker needs here.
int64_t token_gradient_scratch(const CastGradientState& state);

}  // namespace cluster_attention::kernels
