#pragma once

// Gradients of the sparse products (§3). With key s in slot t of query l:
//
//   sparse_dot:           dq_l  = sum_t g_lt k_s,  dk_s = sum_(l,t) g_lt q_l
//   sparse_weighted_sum:  dw_lt = g_l·v_s,         dv_s = sum_(l,t) w_lt g_l
//
// The gradient of a query's side is the other product's forward. That of a key's side is the
// transposed sum: the slots are sorted by key, and every key has one owner, which adds the rows of
// its queries in the order of its slots (fp32, in blocks of kPairBlock).

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status sparse_dot_gradient(const SparseDotGradientProblem& problem, Context& context);
Status sparse_weighted_sum_gradient(const SparseWeightedSumGradientProblem& problem,
                                    Context& context);

}  // namespace cluster_attention::kernels
