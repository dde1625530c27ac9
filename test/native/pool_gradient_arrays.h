#pragma once

// A backward of pooling, made from a case of the table.

#include <algorithm>
#include <limits>

#include "native/core/gradient_problem.h"
#include "native/reference/centroid_pool.h"
#include "test/native/compare.h"
#include "test/native/pool_arrays.h"
#include "test/native/wanted.h"

namespace cluster_attention::test {

/// A pooling and everything its backward needs.
struct PoolGradientArrays : PoolArrays {
  Arrays gradients;
  CentroidPoolGradientProblem problem;
  float* output_gradient;

  PoolGradientArrays(const Case& which, Similarity similarity, PoolStart start)
      : PoolArrays(which, similarity, start) {
    const CentroidPoolProblem& forward = PoolArrays::problem;
    output_gradient = gradients.floats(centroid_count(), 77);
    // Centroids past the clamp are constants: nothing of their gradient may be read.
    for (int64_t b = 0; b < forward.batch; ++b) {
      const int64_t real =
          std::min(forward.centroids, real_length(forward.lengths, b, forward.length));
      std::fill(output_gradient + (b * forward.centroids + real) * forward.dim,
                output_gradient + (b + 1) * forward.centroids * forward.dim,
                std::numeric_limits<float>::quiet_NaN());
    }
    problem.output_gradient = output_gradient;
    problem.inputs = gradients.output<float>(input_count());
    if (start == PoolStart::given) problem.initial = gradients.output<float>(centroid_count());
    problem.forward = forward;
  }

  int64_t input_count() const {
    const CentroidPoolProblem& p = PoolArrays::problem;
    return p.batch * p.length * p.dim;
  }
  int64_t centroid_count() const {
    const CentroidPoolProblem& p = PoolArrays::problem;
    return p.batch * p.centroids * p.dim;
  }
  std::vector<float> inputs_gradient() const { return read(problem.inputs, input_count()); }
  std::vector<float> initial_gradient() const { return read(problem.initial, centroid_count()); }
  std::vector<std::vector<float>> results() const {
    std::vector<std::vector<float>> list = {inputs_gradient()};
    if (problem.initial != nullptr) list.push_back(initial_gradient());
    return list;
  }
};

/// Against the reference.
inline void check_gradients(const PoolGradientArrays& fixture, double bound) {
  const auto expected = reference::centroid_pool_gradient(fixture.problem);
  CHECK_CLOSE(fixture.inputs_gradient(), expected.inputs, bound);
  if (fixture.problem.initial == nullptr) return;
  // Steps forget where they came from: the gradient by the start is a small rest.
  CHECK_CLOSE(fixture.initial_gradient(), expected.initial, bound, 0.1 * norm(expected.inputs));
}

inline CentroidPoolGradientProblem one_pool_gradient_sequence(CentroidPoolGradientProblem problem,
                                                              int64_t b) {
  const CentroidPoolProblem& forward = problem.forward;
  problem.output_gradient = part(problem.output_gradient, b, forward.centroids * forward.dim);
  problem.inputs = part(problem.inputs, b, forward.length * forward.dim);
  problem.initial = part(problem.initial, b, forward.centroids * forward.dim);
  problem.forward = one_pool_sequence(problem.forward, b);
  return problem;
}

}  // namespace cluster_attention::test
