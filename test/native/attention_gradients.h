#pragma once

// Exact and clustered attention that has been run on the CPU, and everything their backward needs.

#include <string>

#include "native/reference/attention.h"
#include "test/native/checks.h"
#include "test/native/clustered_arrays.h"
#include "test/native/gradients.h"
#include "test/native/wanted.h"

namespace cluster_attention::test {

struct AttentionGradientFixture : AttentionArrays {
  Arrays outputs;
  AttentionGradientArrays made;
  AttentionGradientProblem problem;

  explicit AttentionGradientFixture(const Case& which, bool causal = false,
                                    Fill fill = Fill::gaussian)
      : AttentionArrays(which, fill), made(*this, which, fill, &outputs) {
    problem.forward.inputs = inputs;
    problem.forward.causal = causal;
    problem.forward.output = output;
    problem.forward.logsumexp =
        arrays.output<float>(which.batch * which.heads * which.query_length);
    problem.output_gradient = made.output_gradient;
    problem.gradients = made.gradients;
    run_forward();
  }
  void run_forward() {
    CHECK_RUNS(problem.forward, arrays);
    arrays.snapshot();
  }
  DenseGradients result() const { return read_gradients(problem.gradients, inputs.shape); }
  std::vector<std::vector<float>> results() const { return result().list(); }
};

struct ClusteredGradientFixture : ClusteredFixture {
  Arrays outputs;
  AttentionGradientArrays made;
  ClusteredAttentionGradientProblem problem;

  ClusteredGradientFixture(const Case& which, Grouping grouping, int64_t top_k, bool detach = false)
      : ClusteredFixture(which, grouping, top_k), made(*this, which, Fill::gaussian, &outputs) {
    ClusteredAttentionProblem& forward = ClusteredFixture::problem;
    forward.cluster_values = arrays.output<float>(sequences() * forward.clusters * which.value_dim);
    forward.cluster_logsumexp = arrays.output<float>(sequences() * forward.clusters);
    problem.forward = forward;
    problem.detach_mass = detach;
    problem.output_gradient = made.output_gradient;
    problem.gradients = made.gradients;
    run_forward();
  }
  void run_forward() {
    CHECK_RUNS(problem.forward, arrays);
    arrays.snapshot();
  }
  DenseGradients result() const { return read_gradients(problem.gradients, inputs.shape); }
  std::vector<std::vector<float>> results() const { return result().list(); }
};

inline AttentionGradientProblem one_sequence(AttentionGradientProblem problem, int64_t sequence) {
  AttentionProblem& forward = problem.forward;
  const AttentionShape shape = forward.inputs.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.output_gradient = alone(problem.output_gradient, b, h);
  problem.gradients = alone(problem.gradients, b, h);
  forward.inputs = alone(forward.inputs, b, h);
  forward.output = alone(forward.output, b, h);
  forward.logsumexp = part(forward.logsumexp, sequence, shape.query_length);
  return problem;
}

inline ClusteredAttentionGradientProblem one_sequence(ClusteredAttentionGradientProblem problem,
                                                      int64_t sequence) {
  const AttentionShape shape = problem.forward.inputs.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.output_gradient = alone(problem.output_gradient, b, h);
  problem.gradients = alone(problem.gradients, b, h);
  problem.forward = one_sequence(problem.forward, sequence);
  return problem;
}

/// The gradients of a reference against differences of its loss.
inline void check_differences(const AttentionInputs& in,
                              const reference::AttentionGradientResult& expected,
                              const Loss& loss) {
  const AttentionShape& shape = in.shape;
  check_finite_differences("query", in.query, shape.batch, shape.heads, shape.query_length,
                           shape.head_dim, expected.query, loss);
  check_finite_differences("key", in.key, shape.batch, shape.heads, shape.key_length,
                           shape.head_dim, expected.key, loss);
  check_finite_differences("value", in.value, shape.batch, shape.heads, shape.key_length,
                           shape.value_dim, expected.value, loss);
}

/// The arrays that precision: 'bfloat16' rounds.
template <typename Fixture>
RoundedInputs rounded_inputs(const Fixture& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  return {{fixture.query, sequences * shape.query_length * shape.head_dim},
          {fixture.key, sequences * shape.key_length * shape.head_dim},
          {fixture.value, sequences * shape.key_length * shape.value_dim},
          {fixture.made.output_gradient_data, sequences * shape.query_length * shape.value_dim}};
}

/// More pairs (cluster, top key) than are kept at a time, in sequences of different lengths.
inline Case many_top_keys() {
  Case which = find_case("ragged-keys");
  which.query_length = 140;
  which.key_length = 131;
  which.head_dim = 9;
  which.value_dim = 7;
  which.clusters = 80;
  which.query_lengths = {140, 133, 20};
  which.key_lengths = {131, 90, 3};
  return which;
}

/// The gradients against those of a reference. The backward subtracts means: of a single key
/// nothing is left but rounding, so that errors count against a share of what cancels.
inline void check_gradients(const DenseGradients& actual,
                            const reference::AttentionGradientResult& expected,
                            double bound = kRelativeL2, double share = 0.1) {
  const double magnitude = share * norm(expected.value);
  CHECK_CLOSE(actual.query, expected.query, bound, magnitude);
  CHECK_CLOSE(actual.key, expected.key, bound, magnitude);
  CHECK_CLOSE(actual.value, expected.value, bound);
}

}  // namespace cluster_attention::test
