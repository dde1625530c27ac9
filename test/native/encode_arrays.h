#pragma once

// A problem of the learned layer, made from a case of the table.

#include "native/core/problem.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// N = S inputs of width d = E, H heads of D, M = min(C, N) centroids.
struct EncodeArrays {
  Arrays arrays;
  CentroidEncodeProblem problem;
  float* inputs;
  float* initial;
  float* matrices[4];  // W_q, W_k, W_v, W_o
  float* weights = nullptr;
  int32_t* neighbors = nullptr;

  EncodeArrays(const Case& which, PoolStart start);
  /// One input in five has weight 0.
  void add_weights();
  void add_neighbors(int64_t count);
  std::vector<float> result() const {
    return read(problem.output, problem.batch * problem.centroids * problem.dim);
  }
};

/// The part of a problem that is batch entry b.
CentroidEncodeProblem one_encode_sequence(CentroidEncodeProblem problem, int64_t b);

}  // namespace cluster_attention::test
