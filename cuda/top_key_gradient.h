#pragma once

// The queries of a cluster and its top keys: what improved clustered attention adds to plain
// clustered attention, differentiated. With p_it the softmax of query i over the keys t of T_j,
// m̂_j the mass of its cluster and x_it = g_i·v_t, the weights m̂_j p_it are those of a softmax
// whose log-sum-exp is less by log m̂_j, and y_it = m̂_j p_it (x_it - x̄_i): the backward of
// attention once more (gradient_sums.cuh), over lists of rows. The kernels are in
// top_key_gradient.cuh.

#include "cuda/gradient_operands.h"
#include "cuda/query_groups.h"

namespace cluster_attention::cuda {

struct TopKeyGradient {
  AttentionShape shape;
  int64_t clusters = 0;
  int64_t top_k = 0;
  float scale = 1.0f;
  bool split = true;
  OperandPair query_operands;            // queries and the gradients of their outputs
  OperandPair key_operands;              // keys and values
  OperandPair mean_operands;             // mean queries and G
  const int32_t* offsets = nullptr;      // (B,H,C+1)
  const int32_t* order = nullptr;        // (B,H,L)
  const int32_t* lists = nullptr;        // (B,H,C,k): T_j, -1 past its end
  const int32_t* list_counts = nullptr;  // (B,H,C)
  const float* masses = nullptr;         // (B,H,C): m̂
  /// Of every query, in the terms of gradient_sums.cuh: written by top_key_terms().
  float* maximum = nullptr;  // (B,H,L)
  float* offset = nullptr;   // (B,H,L): x̄
};

/// maximum, and with `wants_offset` offset, of every query in a cluster. One launch.
Status top_key_terms(Session& session, const TopKeyGradient& problem, bool wants_offset);

/// dq_i = tau sum_t y_it k_t + mean_gradient of its cluster (B,H,C,D), of the queries in a cluster.
/// One launch.
Status top_key_queries(Session& session, const TopKeyGradient& problem, const float* mean_gradient,
                       const StoredOutput& query);

/// What the clusters [first, first + count) add to their keys, one row for each (cluster, t):
///   key_rows   = tau (sum_i y_it q_i + change_jt q̄_j)
///   value_rows = sum_i m̂ p_it g_i - A_jt G_j
/// The second terms take back what the attention of the mean queries gives at T_j. Null: not
/// wanted. One launch.
struct TopKeyRows {
  int64_t first = 0;
  int64_t count = 0;
  const float* shares = nullptr;   // (B,H,C,k): A_jt
  const float* changes = nullptr;  // (B,H,C,k): A_jt (mu_j - G_j·v_t)
  float* key_rows = nullptr;       // (B,H,count,k,D)
  float* value_rows = nullptr;     // (B,H,count,k,E)
};
Status top_key_rows(Session& session, const TopKeyGradient& problem, const TopKeyRows& rows);

}  // namespace cluster_attention::cuda
