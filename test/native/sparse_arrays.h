#pragma once

// Both sparse products of one case of the table.

#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// Both products over the same indices: per query, or per cluster with labels. About a tenth of the
/// slots are -1, and with key lengths some lie past the real keys, which counts as -1.
struct SparseFixture : AttentionArrays {
  SparseDotProblem dot;
  SparseWeightedSumProblem sum;
  int32_t* indices;
  int32_t* labels = nullptr;
  float* weights;

  SparseFixture(const Case& which, bool per_cluster, Fill fill = Fill::gaussian);

  std::vector<float> dots() const {
    const AttentionShape& shape = dot.shape;
    return read(dot.output, shape.batch * shape.heads * shape.query_length * dot.sparse.k);
  }
  std::vector<float> sums() const { return read_output(sum.output, sum.shape); }
};

/// The problem of one (batch, head), with outputs in the same places.
SparseDotProblem one_dot(const SparseDotProblem& problem, int64_t sequence);
SparseWeightedSumProblem one_sum(const SparseWeightedSumProblem& problem, int64_t sequence);

}  // namespace cluster_attention::test
