#pragma once

// §6 The learned layer on the GPU: T shared steps of
// u <- u + eps W_o concat_l(aggregate_i a_lji (W_v x_i)_l). The projections of the inputs are made
// once, or absorbed into the centroids' side (q̃_l = W_k,l^T W_q,l u, Z_l = sum_i a_lji x_i), by
// cost as on the CPU.
//
// Launches: the start (centroid_start.h), one more for weights, two for projected keys and values;
// then per step one projection of the centroids and one of what they have collected (two each when
// absorbed), with the launches of the attention between them: each needs whole rows of what comes
// before, made by many blocks. Precision 'bfloat16' rounds the arguments and computes in float32.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_encode(Session& session, const CentroidEncodeProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
