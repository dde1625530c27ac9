#pragma once

// §3 Sparse products: of each query with the k keys it lists, and of its k weights with the values
// it lists. With labels the lists belong to clusters, and every query of a cluster shares its
// cluster's list.
//
// Method, per query: one dot product per listed key (fp32, in the lane order of simd().dot); the
// listed values are gathered and summed in the order of the list.
// Per cluster: the queries are sorted by cluster, the listed rows gathered once, and a small dense
// product serves the cluster's queries, which lie in SIMD lanes (fp32, in index order).
//
// A slot of -1, and one at or past the sequence's key length, is none: -Inf, or nothing to the sum.
// So is every slot of a padded query and of one without a cluster.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status sparse_dot(const SparseDotProblem& problem, Context& context);
Status sparse_weighted_sum(const SparseWeightedSumProblem& problem, Context& context);

/// sparse_dot() with another value than -Inf where there is no key.
Status sparse_products(const SparseDotProblem& problem, float none, Context& context);

}  // namespace cluster_attention::kernels
