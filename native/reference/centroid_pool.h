#pragma once

// §6 pooling without learned weights: T steps of u_j <- sum_i a_ji x_i / sum_i a_ji with
// a_ji = softmax over j of similarity(u_j, x_i) / temperature.

#include "native/core/gradient_problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct CentroidPoolResult {
  std::vector<double> output;   // (batch,M,d)
  std::vector<int32_t> labels;  // (batch,N), -1 for padding
  std::vector<double> masses;   // (batch,M)
};

CentroidPoolResult centroid_pool(const CentroidPoolProblem& problem);

/// a (M,N) of centroids (M,d) and inputs (N,d); temperature 0 gives the whole input to the most
/// similar centroid (tie: lowest).
Matrix pool_assignment(const Matrix& centroids, const Matrix& inputs, Similarity similarity,
                       double temperature);

/// The start u⁰: `given` may be null unless start says so.
Matrix starting_centroids(const Matrix& inputs, int64_t centroids, PoolStart start, bool cosine,
                          uint64_t seed, const float* given);

/// The gradient by the inputs that the start was made of, given the one by u⁰; which rows it picks
/// is a constant.
Matrix starting_gradient(const Matrix& inputs, PoolStart start, bool cosine, uint64_t seed,
                         const Matrix& gradient);

struct CentroidPoolGradientResult {
  std::vector<double> inputs;   // (batch,N,d)
  std::vector<double> initial;  // (batch,M,d)
};

/// Through all steps; the labels of a hard assignment are constants.
CentroidPoolGradientResult centroid_pool_gradient(const CentroidPoolGradientProblem& problem);

}  // namespace cluster_attention::reference
