#pragma once

// A backward of the learned layer, made from a case of the table.

#include <algorithm>
#include <limits>

#include "native/core/gradient_problem.h"
#include "native/reference/centroid_encode.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/encode_arrays.h"
#include "test/native/wanted.h"

namespace cluster_attention::test {

/// A layer and everything its backward needs.
struct EncodeGradientArrays : EncodeArrays {
  Arrays gradients;
  CentroidEncodeGradientProblem problem;
  float* output_gradient;

  EncodeGradientArrays(const Case& which, PoolStart start) : EncodeArrays(which, start) {
    const CentroidEncodeProblem& forward = EncodeArrays::problem;
    output_gradient = gradients.floats(centroid_count(), 77);
    problem.output_gradient = output_gradient;
    problem.inputs = gradients.output<float>(input_count());
    if (start == PoolStart::given) problem.initial = gradients.output<float>(centroid_count());
    problem.query_weight = gradients.output<float>(weight_count());
    problem.key_weight = gradients.output<float>(weight_count());
    problem.value_weight = gradients.output<float>(weight_count());
    problem.output_weight = gradients.output<float>(weight_count());
    problem.forward = forward;
  }

  void add_weights() {
    EncodeArrays::add_weights();
    problem.forward.weights = weights;
  }
  void add_neighbors(int64_t count) {
    EncodeArrays::add_neighbors(count);
    problem.forward.neighbors = neighbors;
    problem.forward.neighbor_count = count;
  }
  /// 3 of the 53 inputs of the case "prime" are left for its 7 centroids: nothing of the gradient
  /// by the other 4 may be read.
  void remove_most_inputs() {
    add_weights();
    std::fill_n(weights, 50, 0.0f);
    std::fill_n(weights + 50, 3, 1.5f);
    const int64_t dim = problem.forward.dim;
    std::fill_n(output_gradient + 3 * dim, 4 * dim, std::numeric_limits<float>::quiet_NaN());
  }
  int64_t input_count() const {
    const CentroidEncodeProblem& p = EncodeArrays::problem;
    return p.batch * p.length * p.dim;
  }
  int64_t centroid_count() const {
    const CentroidEncodeProblem& p = EncodeArrays::problem;
    return p.batch * p.centroids * p.dim;
  }
  int64_t weight_count() const {
    const CentroidEncodeProblem& p = EncodeArrays::problem;
    return p.heads * p.head_dim * p.dim;
  }
  std::vector<std::vector<float>> results() const {
    std::vector<std::vector<float>> list = {read(problem.inputs, input_count())};
    list.push_back(problem.initial == nullptr ? std::vector<float>()
                                              : read(problem.initial, centroid_count()));
    for (const float* weight :
         {problem.query_weight, problem.key_weight, problem.value_weight, problem.output_weight}) {
      list.push_back(read(weight, weight_count()));
    }
    return list;
  }
};

/// Against the reference. Bounds are those of the gradients as one vector: what cancels in one of
/// them stands in another.
inline void check_gradients(const EncodeGradientArrays& fixture, double bound) {
  const CentroidEncodeGradientProblem& problem = fixture.problem;
  const auto expected = reference::centroid_encode_gradient(problem);
  const int64_t weight = fixture.weight_count();
  const double magnitude = 0.1 * std::max(norm(expected.output_weight), norm(expected.inputs));
  CHECK_CLOSE(read(problem.inputs, fixture.input_count()), expected.inputs, bound, magnitude);
  if (problem.initial != nullptr) {
    CHECK_CLOSE(read(problem.initial, fixture.centroid_count()), expected.initial, bound);
  }
  CHECK_CLOSE(read(problem.query_weight, weight), expected.query_weight, bound, magnitude);
  CHECK_CLOSE(read(problem.key_weight, weight), expected.key_weight, bound, magnitude);
  CHECK_CLOSE(read(problem.value_weight, weight), expected.value_weight, bound, magnitude);
  CHECK_CLOSE(read(problem.output_weight, weight), expected.output_weight, bound, magnitude);
}

/// An input of weight 0 is never read and its gradient is 0; run(problem) writes the gradients.
template <typename Run>
void check_weight_zero(PoolStart start, Run run) {
  for (int64_t centroids : {2, 40}) {  // absorbed, projected
    Case which = find_case("prime");
    which.value_dim = 130;
    which.clusters = centroids;
    EncodeGradientArrays fixture(which, start);
    fixture.add_weights();
    run(fixture);
    const auto expected = fixture.gradients.snapshot();
    const int64_t dim = fixture.problem.forward.dim;
    std::fill_n(fixture.inputs + 2 * dim, dim, std::numeric_limits<float>::quiet_NaN());
    run(fixture);
    check_same_bytes(fixture.gradients.snapshot(), expected, "an input of weight 0");
    for (int64_t d = 0; d < dim; ++d) CHECK_EQUAL(fixture.problem.inputs[2 * dim + d], 0.0f);
  }
}

inline CentroidEncodeGradientProblem one_encode_gradient_sequence(
    CentroidEncodeGradientProblem problem, int64_t b) {
  const CentroidEncodeProblem& forward = problem.forward;
  problem.output_gradient = part(problem.output_gradient, b, forward.centroids * forward.dim);
  problem.inputs = part(problem.inputs, b, forward.length * forward.dim);
  problem.initial = part(problem.initial, b, forward.centroids * forward.dim);
  problem.forward = one_encode_sequence(problem.forward, b);
  return problem;
}

}  // namespace cluster_attention::test
