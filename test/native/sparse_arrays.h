#pragma once

// Both sparse products of one case of the table.

#include "test/native/attention_arrays.h"
#include "test/native/gradients.h"

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

/// Their gradients, with outputs for all of them.
struct SparseGradientFixture : SparseFixture {
  SparseDotGradientProblem dot_gradient;
  SparseWeightedSumGradientProblem sum_gradient;
  float* dot_output_gradient;
  float* sum_output_gradient;

  SparseGradientFixture(const Case& which, bool per_cluster, Fill fill = Fill::gaussian)
      : SparseFixture(which, per_cluster, fill) {
    const AttentionShape& shape = inputs.shape;
    const int64_t sequences = shape.batch * shape.heads;
    const int64_t slots = sequences * shape.query_length * dot.sparse.k;
    dot_output_gradient = arrays.floats(slots, 31, fill);
    dot_gradient.forward = dot;
    dot_gradient.output_gradient = dot_output_gradient;
    dot_gradient.query =
        same_view(dot.query, arrays.output<float>(sequences * shape.query_length * shape.head_dim));
    dot_gradient.key =
        same_view(dot.key, arrays.output<float>(sequences * shape.key_length * shape.head_dim));
    sum_output_gradient = arrays.floats(sequences * shape.query_length * shape.value_dim, 32, fill);
    poison_padding(sum_output_gradient, which, which.query_lengths, shape.query_length,
                   shape.value_dim);
    sum_gradient.forward = sum;
    sum_gradient.output_gradient = same_view<const float>(sum.output, sum_output_gradient);
    sum_gradient.weights = arrays.output<float>(slots);
    sum_gradient.value =
        same_view(sum.value, arrays.output<float>(sequences * shape.key_length * shape.value_dim));
  }

  std::vector<float> query_gradient() const {
    return read_view(dot_gradient.query, dot.shape.batch, dot.shape.heads, dot.shape.query_length,
                     dot.shape.head_dim);
  }
  std::vector<float> key_gradient() const {
    return read_view(dot_gradient.key, dot.shape.batch, dot.shape.heads, dot.shape.key_length,
                     dot.shape.head_dim);
  }
  std::vector<float> weight_gradient() const {
    return read(sum_gradient.weights,
                sum.shape.batch * sum.shape.heads * sum.shape.query_length * sum.sparse.k);
  }
  std::vector<float> value_gradient() const {
    return read_view(sum_gradient.value, sum.shape.batch, sum.shape.heads, sum.shape.key_length,
                     sum.shape.value_dim);
  }
};

/// The problem of one (batch, head), with outputs in the same places.
SparseDotProblem one_dot(const SparseDotProblem& problem, int64_t sequence);
SparseWeightedSumProblem one_sum(const SparseWeightedSumProblem& problem, int64_t sequence);

}  // namespace cluster_attention::test
