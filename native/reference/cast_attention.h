#pragma once

// §7 CAST, step by step.

#include "native/core/gradient_problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

/// Steps 1-3: the tokens of each cluster, (B,C,kappa), -1 for an empty slot.
std::vector<int32_t> cast_indices(const CastAttentionProblem& problem);
/// Step 2 alone: A_g of one sequence, (real tokens, C).
Matrix cast_gate_scores(const CastAttentionProblem& problem, int64_t batch);

/// Steps 4-7 given the tokens of each cluster: the output (B,H,N,E).
std::vector<double> cast_attention(const CastAttentionProblem& problem,
                                   const std::vector<int32_t>& indices);

struct CastAttentionGradientResult {
  std::vector<double> query;       // (B,H,N,D)
  std::vector<double> key;         // (B,H,N,D)
  std::vector<double> value;       // (B,H,N,E)
  std::vector<double> surrogates;  // (H,C,D)
  std::vector<double> gate;        // (B,N)
};

/// Gradients of the same, the tokens of each cluster being constants.
CastAttentionGradientResult cast_attention_gradient(const CastAttentionGradientProblem& problem,
                                                    const std::vector<int32_t>& indices);

/// Share of the real tokens of each sequence that are in some cluster, (B).
std::vector<double> cast_coverage(const CastAttentionProblem& problem,
                                  const std::vector<int32_t>& indices);

}  // namespace cluster_attention::reference
