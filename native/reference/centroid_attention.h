#pragma once

// §6 centroid attention: O_j = sum_i a_ji v_i with the softmax over the centroids (or, with
// normalize 'inputs', over the inputs).

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct CentroidAttentionResult {
  std::vector<double> output;     // (B,H,M,E)
  std::vector<int32_t> labels;    // (B,H,N), -1 for none
  std::vector<double> masses;     // (B,H,M)
  std::vector<double> objective;  // (B)
};

CentroidAttentionResult centroid_attention(const CentroidAttentionProblem& problem);

/// One head of one sequence: q (M,D), k (N,D), v (N,E).
struct CentroidHead {
  Matrix assignment;           // a (M,N)
  Matrix output;               // (M,E)
  std::vector<double> masses;  // r_j = sum_i a_ji
  double objective = 0.0;      // sum of the log-sum-exps
};

/// Which centroid may take which input, and the multipliers of the inputs: w_i where it may, 0
/// where it may not. (M,N).
Matrix allowed_weights(const float* weights, const int32_t* neighbors, int64_t neighbor_count,
                       int64_t centroids, int64_t inputs);

CentroidHead centroid_head(const Matrix& query, const Matrix& key, const Matrix& value,
                           double scale, const Matrix& allowed, Normalize normalize,
                           Collect aggregate);

}  // namespace cluster_attention::reference
