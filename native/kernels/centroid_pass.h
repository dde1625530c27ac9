#pragma once

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/kernels/query_groups.h"

namespace cluster_attention::kernels {

/// Attention of the mean queries over all keys, A^c V with A^c = softmax(tau q̄ K^T), and the top-k
/// keys of every cluster by q̄·k. Sequence s = b * H + h; entries of empty clusters are unset.
struct CentroidPass {
  float* values = nullptr;      // (B,H,C,E): V^c
  float* maximum = nullptr;     // (B,H,C): softmax state of a row of A^c, in base 2
  float* sum = nullptr;         // (B,H,C)
  float* top_scores = nullptr;  // (B,H,C,k): q̄·k of T_j, best first
  int32_t* top_keys = nullptr;  // (B,H,C,k): T_j, -1 past the real keys
};

/// Computes the pass into arrays of the context's workspace (top_* only when problem.top_k > 0).
Status centroid_pass(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                     Context& context, CentroidPass& pass);

}  // namespace cluster_attention::kernels
