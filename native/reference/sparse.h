#pragma once

// §3 products of each query with the few keys it lists, by itself or through its cluster.

#include <vector>

#include "native/core/problem.h"

namespace cluster_attention::reference {

std::vector<double> sparse_dot(const SparseDotProblem& problem);                   // (B,H,L,k)
std::vector<double> sparse_weighted_sum(const SparseWeightedSumProblem& problem);  // (B,H,L,E)

}  // namespace cluster_attention::reference
