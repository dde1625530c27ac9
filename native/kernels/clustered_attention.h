#pragma once

// §4 Clustered and §5 improved clustered attention (Vyas, Katharopoulos, Fleuret, "Fast
// Transformers with Clustered Attention", NeurIPS 2020, sections 3.2 and 3.3).
//
//   clustered:  output_i = V^c_j,  V^c = softmax(tau q̄ K^T) V,  j the cluster of query i
//   improved:   output_i = V^c_j + sum_{t in T_j} (m̂_j p_it - A^c_jt) v_t
//             = base_j + m̂_j sum_t p_it v_t,  base_j = V^c_j - sum_t A^c_jt v_t
//
// Four steps: group the queries (query_groups), mean queries, one pass of exact attention with the
// mean queries in lanes that also selects T_j (centroid_pass), then per cluster a small dense
// product of its queries with the gathered keys of T_j. Cost O(S C (D+E) + L k (D+E)); memory
// O(L + C (D+E+k)), no C x S matrix. fp32 accumulation, means in double.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status clustered_attention(const ClusteredAttentionProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
