#pragma once

// §4, §5 clustered and improved clustered attention.

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/reference/attention.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

/// The discrete choices; everything else is a smooth function of them and the inputs.
struct ClusteredChoices {
  std::vector<int32_t> labels;   // (B,H,L), -1 for padding
  std::vector<int32_t> indices;  // (B,H,C,k), best first; -1 past the real keys
};

/// Groups the queries as the problem says (§2.1-2.3).
std::vector<int32_t> clustered_labels(const ClusteredAttentionProblem& problem);
/// T_j: the top k keys of each cluster by q̄_j·k; -1 throughout for an empty cluster.
std::vector<int32_t> clustered_indices(const ClusteredAttentionProblem& problem,
                                       const std::vector<int32_t>& labels);

/// The output (B,H,L,E) given the choices.
std::vector<double> clustered_attention(const ClusteredAttentionProblem& problem,
                                        const ClusteredChoices& choices);

/// The gradient of sum output gradient * output given the choices; saved results are not read.
AttentionGradientResult clustered_attention_gradient(
    const ClusteredAttentionGradientProblem& problem, const ClusteredChoices& choices);

/// The weights with which query i reads the keys, (real queries, real keys): A^c_s(i) when k = 0,
/// else A^t_i (m̂ p inside T, A^c outside).
Matrix clustered_weights(const ClusteredAttentionProblem& problem, const ClusteredChoices& choices,
                         int64_t batch, int64_t head);

}  // namespace cluster_attention::reference
