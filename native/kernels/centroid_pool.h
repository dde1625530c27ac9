#pragma once

// §6 Pooling without learned weights: N inputs -> M centroids by T steps of
//
//     u_j <- sum_i a_ji x_i / sum_i a_ji,    a_ji = softmax over j of similarity(u_j, x_i) / t,
//
// t = 0 being the limit, all of an input to its most similar centroid.
//
// Method: the tile of assignment.h with the inputs as keys and as values; one pass over the inputs
// per step. Similarities are dot products of prepared operands, see pool_similarity.h.
// Precision: fp32; norms in double.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status centroid_pool(const CentroidPoolProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
