#pragma once

// A problem of pooling, made from a case of the table.

#include "native/core/problem.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

constexpr Similarity kSimilarities[] = {Similarity::cosine, Similarity::dot, Similarity::euclidean};
constexpr PoolStart kPoolStarts[] = {PoolStart::stride, PoolStart::plus_plus, PoolStart::farthest,
                                     PoolStart::given};

/// Inputs are the keys of a case as one head, centroids its clusters.
struct PoolArrays {
  Arrays arrays;
  CentroidPoolProblem problem;
  float* inputs;
  float* initial;

  PoolArrays(const Case& which, Similarity similarity, PoolStart start);
  PoolArrays(const Case& which, Similarity similarity, PoolStart start,
             const std::vector<float>& values);
  std::vector<float> result() const {
    return read(problem.output, problem.batch * problem.centroids * problem.dim);
  }
  std::vector<int32_t> labels() const {
    return read(problem.labels, problem.batch * problem.length);
  }
  std::vector<float> masses() const {
    return read(problem.masses, problem.batch * problem.centroids);
  }
};

/// Rows and given centroids of -1, 0 and 1, of which many are equally far apart; no steps.
PoolArrays tied_pool(Similarity similarity, int64_t centroids);

/// A hard assignment to planted clusters ("prime"), from a row of each.
PoolArrays planted_pool(Similarity similarity);
/// Elements of it that shall be NaN: of a first centroid and of a later one, and of inputs.
std::vector<float*> spoiled_centroids(const PoolArrays& planted);
std::vector<float*> spoiled_inputs(const PoolArrays& planted);

/// The part of a problem that is batch entry b.
CentroidPoolProblem one_pool_sequence(CentroidPoolProblem problem, int64_t b);

std::string pool_options_name(Similarity similarity, PoolStart start);

}  // namespace cluster_attention::test
