#pragma once

// §6 The learned layer, amortised clustering (Wu, Liu and Liu 2021): T steps, with shared weights,
// of
//
//     u <- u + step_size W_o concat_l(aggregate_i a_lji (W_v x_i)_l),   q = W_q u, k = W_k x
//
// Method: one of two ways with the same result, chosen by cost. Projected: keys and values are
// computed once, (N, H D) each. Absorbed: q_l.k_l = (W_k,l^T W_q,l u).x, and the values are
// projected after the sum over the inputs, W_v,l sum_i a_lji x_i; so the inputs themselves are keys
// and values of every head and nothing of size N is written.
// Precision: fp32.
//
// An input of weight 0 is treated like padding: the start does not read it either, and centroids
// past the number of active inputs are rows of zeros (unless `initial` is given).

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status centroid_encode(const CentroidEncodeProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
