#pragma once

// §7 CAST, step by step.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

/// Steps 1-3: the tokens of each cluster, (B,C,kappa), -1 for an empty slot.
std::vector<int32_t> cast_indices(const CastAttentionProblem& problem);
/// Step 2 alone: A_g of one sequence, (real tokens, C).
Matrix cast_gate_scores(const CastAttentionProblem& problem, int64_t batch);

/// Steps 4-7 given the tokens of each cluster: the output (B,H,N,E).
std::vector<double> cast_attention(const CastAttentionProblem& problem,
                                   const std::vector<int32_t>& indices);

/// Share of the real tokens of each sequence that are in some cluster, (B).
std::vector<double> cast_coverage(const CastAttentionProblem& problem,
                                  const std::vector<int32_t>& indices);

}  // namespace cluster_attention::reference
