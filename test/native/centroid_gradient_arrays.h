#pragma once

// A backward of centroid attention, made from a case of the table.

#include <algorithm>

#include "native/core/gradient_problem.h"
#include "native/reference/centroid_attention.h"
#include "test/native/centroid_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/wanted.h"

namespace cluster_attention::test {

/// A centroid attention that has been run, and everything its backward needs.
struct CentroidGradientArrays : CentroidArrays {
  Arrays gradients;
  CentroidAttentionGradientProblem problem;
  float* output_gradient;

  CentroidGradientArrays(const Case& which, const CentroidOptions& options,
                         Fill fill = Fill::gaussian)
      : CentroidArrays(which, options, fill) {
    const AttentionShape& shape = inputs.shape;
    const int64_t elements = sequences() * shape.query_length * shape.value_dim;
    output_gradient = gradients.floats(elements, 77, fill);
    poison_padding(output_gradient, which, which.query_lengths, shape.query_length,
                   shape.value_dim);
    problem.forward = CentroidArrays::problem;
    problem.output_gradient =
        view<const float>(output_gradient, shape.query_length, shape.value_dim, which);
    problem.gradients.query = output_view(shape.query_length, shape.head_dim, which);
    problem.gradients.key = output_view(shape.key_length, shape.head_dim, which);
    problem.gradients.value = output_view(shape.key_length, shape.value_dim, which);
    if (options.weights) problem.weights = gradients.output<float>(shape.batch * shape.key_length);
    run_forward();
  }

  void run_forward() {
    CHECK_RUNS(problem.forward, arrays);
    arrays.snapshot();
  }

  std::vector<float> query_gradient() const {
    return rows(problem.gradients.query, inputs.shape.query_length, inputs.shape.head_dim);
  }
  std::vector<float> key_gradient() const {
    return rows(problem.gradients.key, inputs.shape.key_length, inputs.shape.head_dim);
  }
  std::vector<float> value_gradient() const {
    return rows(problem.gradients.value, inputs.shape.key_length, inputs.shape.value_dim);
  }
  std::vector<float> weights_gradient() const {
    return read(problem.weights, inputs.shape.batch * inputs.shape.key_length);
  }

  std::vector<std::vector<float>> results() const {
    std::vector<std::vector<float>> list = {query_gradient(), key_gradient(), value_gradient()};
    if (problem.weights != nullptr) list.push_back(weights_gradient());
    return list;
  }

 private:
  template <typename T>
  RowView<T> view(T* data, int64_t length, int64_t dim, const Case& which) const {
    return dense_rows<T>(data, which.layout, which.heads, length, dim);
  }
  OutputRows output_view(int64_t length, int64_t dim, const Case& which) {
    return view(gradients.output<float>(sequences() * length * dim), length, dim, which);
  }
  std::vector<float> rows(const OutputRows& view, int64_t length, int64_t dim) const {
    return read_view(view, inputs.shape.batch, inputs.shape.heads, length, dim);
  }
};

/// Against the reference.
inline void check_gradients(const CentroidGradientArrays& fixture, double bound) {
  const auto expected = reference::centroid_attention_gradient(fixture.problem);
  // The backward subtracts means: of a single partner nothing is left but rounding.
  const double magnitude = 0.1 * norm(expected.value);
  CHECK_CLOSE(fixture.query_gradient(), expected.query, bound, magnitude);
  CHECK_CLOSE(fixture.key_gradient(), expected.key, bound, magnitude);
  CHECK_CLOSE(fixture.value_gradient(), expected.value, bound);
  if (fixture.weights == nullptr) return;
  // d/dw = (w d/dw) / w: a small weight enlarges the rounding.
  float smallest = 1.0f;
  const AttentionShape& shape = fixture.inputs.shape;
  for (int64_t i = 0; i < shape.batch * shape.key_length; ++i) {
    if (fixture.weights[i] > 0.0f) smallest = std::min(smallest, fixture.weights[i]);
  }
  CHECK_CLOSE(fixture.weights_gradient(), expected.weights, bound, magnitude / smallest);
}

inline CentroidAttentionGradientProblem one_centroid_gradient_batch(
    CentroidAttentionGradientProblem problem, int64_t b) {
  problem.weights = part(problem.weights, b, problem.forward.inputs.shape.key_length);
  problem.forward = one_centroid_batch(problem.forward, b);
  problem.output_gradient = alone(problem.output_gradient, b);
  problem.gradients.query = alone(problem.gradients.query, b);
  problem.gradients.key = alone(problem.gradients.key, b);
  problem.gradients.value = alone(problem.gradients.value, b);
  return problem;
}

}  // namespace cluster_attention::test
