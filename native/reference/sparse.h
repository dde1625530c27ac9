#pragma once

// §3 products of each query with the few keys it lists, by itself or through its cluster.

#include <vector>

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"

namespace cluster_attention::reference {

std::vector<double> sparse_dot(const SparseDotProblem& problem);                   // (B,H,L,k)
std::vector<double> sparse_weighted_sum(const SparseWeightedSumProblem& problem);  // (B,H,L,E)

struct SparseDotGradients {
  std::vector<double> query;  // (B,H,L,D)
  std::vector<double> key;    // (B,H,S,D)
};
/// dq_l = sum_t g_lt k_s, dk_s = sum_lt g_lt q_l, s the key in slot t of query l.
SparseDotGradients sparse_dot_gradient(const SparseDotGradientProblem& problem);

struct SparseWeightedSumGradients {
  std::vector<double> weights;  // (B,H,L,k)
  std::vector<double> value;    // (B,H,S,E)
};
/// dw_lt = g_l·v_s, dv_s = sum_lt w_lt g_l.
SparseWeightedSumGradients sparse_weighted_sum_gradient(
    const SparseWeightedSumGradientProblem& problem);

}  // namespace cluster_attention::reference
