#pragma once

// §7 Backward of CAST on the GPU (native/kernels/cast_attention_gradient.h says what is computed).
// Up to eight launches, each of which needs all of the one before:
//
//   take_members         checks the indices; the inverse map, the factors of the gates
//   cast_statistics      softmax of step 6, each token over the clusters (not for Laplace)
//   cast_cluster_sums    A_sum of the slots, gradients by the summaries
//   cast_member_rows     softmax of steps 4 and 5, gradients by the queries, R_inter
//   cast_member_columns  gradients by the keys, the values and the gate
//   cast_token_gradient  step 6: gradients by the queries and the gate
//   cast_cluster_sums    step 6: gradients by the surrogates
//   cast_gather          keys, values and gates from their slots; surrogates over the batch
//
// What nobody wants is not launched. The clusters leave one row per slot of each gradient that is
// wanted, so that every sum has one owner and one order. No N x N matrix and no N x C one of
// floats.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status cast_attention_gradient(Session& session, const CastAttentionGradientProblem& problem,
                               const Call& call);

}  // namespace cluster_attention::cuda
