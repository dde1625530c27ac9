#pragma once

// §6 centroid attention: O_j = sum_i a_ji v_i with the softmax over the centroids (or, with
// normalize 'inputs', over the inputs).

#include "native/core/gradient_problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct CentroidAttentionResult {
  std::vector<double> output;     // (B,H,M,E)
  std::vector<int32_t> labels;    // (B,H,N), -1 for none
  std::vector<double> masses;     // (B,H,M)
  std::vector<double> objective;  // (B)
  std::vector<double> logsumexp;  // (B,H,M), of Normalize::inputs
};

CentroidAttentionResult centroid_attention(const CentroidAttentionProblem& problem);

struct CentroidAttentionGradientResult {
  std::vector<double> query;    // (B,H,M,D)
  std::vector<double> key;      // (B,H,N,D)
  std::vector<double> value;    // (B,H,N,E)
  std::vector<double> weights;  // (B,N)
};

CentroidAttentionGradientResult centroid_attention_gradient(
    const CentroidAttentionGradientProblem& problem);

/// One head of one sequence: q (M,D), k (N,D), v (N,E).
struct CentroidHead {
  Matrix assignment;              // a (M,N)
  Matrix output;                  // (M,E)
  std::vector<double> masses;     // r_j = sum_i a_ji
  double objective = 0.0;         // sum of the log-sum-exps
  std::vector<double> logsumexp;  // (M), of Normalize::inputs
};

/// Which centroid may take which input, and the multipliers of the inputs: w_i where it may, 0
/// where it may not. (M,N).
Matrix allowed_weights(const float* weights, const int32_t* neighbors, int64_t neighbor_count,
                       int64_t centroids, int64_t inputs);

CentroidHead centroid_head(const Matrix& query, const Matrix& key, const Matrix& value,
                           double scale, const Matrix& allowed, Normalize normalize,
                           Collect aggregate);

/// Gradients by what centroid_head() reads, given the one by its output.
struct CentroidHeadGradient {
  Matrix query;                 // (M,D)
  Matrix key;                   // (N,D)
  Matrix value;                 // (N,E)
  std::vector<double> weights;  // (N), 0 for a removed input
};

CentroidHeadGradient centroid_head_gradient(const Matrix& query, const Matrix& key,
                                            const Matrix& value, double scale,
                                            const Matrix& allowed, Normalize normalize,
                                            Collect aggregate, const Matrix& output_gradient);

}  // namespace cluster_attention::reference
