#include "test/native/cast_gradient_arrays.h"

#include "test/native/checks.h"
#include "test/native/gradients.h"

namespace cluster_attention::test {

CastGradientArrays::CastGradientArrays(const Case& which, Selection selection,
                                       Activation activation, bool has_scale)
    : CastArrays(which, selection, activation) {
  const AttentionShape& shape = inputs.shape;
  output_gradient = gradients.floats(rows() * shape.value_dim, 77);
  poison_padding(output_gradient, which, which.key_lengths, shape.key_length, shape.value_dim);
  CastArrays::problem.has_scale = has_scale;
  problem.forward = CastArrays::problem;
  problem.output_gradient = same_view<const float>(output, output_gradient);
  problem.gradients.query = output_view(inputs.query, shape.head_dim);
  problem.gradients.key = output_view(inputs.key, shape.head_dim);
  problem.gradients.value = output_view(inputs.value, shape.value_dim);
  problem.surrogates = gradients.output<float>(surrogate_count());
  problem.gate = gradients.output<float>(shape.batch * shape.key_length);
  run_forward();
}

void CastGradientArrays::run_forward() {
  CHECK_RUNS(problem.forward, arrays);
  arrays.snapshot();
}

std::vector<float> CastGradientArrays::query_gradient() const {
  return read_rows(problem.gradients.query, inputs.shape.head_dim);
}
std::vector<float> CastGradientArrays::key_gradient() const {
  return read_rows(problem.gradients.key, inputs.shape.head_dim);
}
std::vector<float> CastGradientArrays::value_gradient() const {
  return read_rows(problem.gradients.value, inputs.shape.value_dim);
}
std::vector<float> CastGradientArrays::surrogates_gradient() const {
  return read(problem.surrogates, surrogate_count());
}
std::vector<float> CastGradientArrays::gate_gradient() const {
  return read(problem.gate, inputs.shape.batch * inputs.shape.key_length);
}

OutputRows CastGradientArrays::output_view(const InputRows& like, int64_t dim) {
  return same_view(like, gradients.output<float>(rows() * dim));
}

std::vector<float> CastGradientArrays::read_rows(const OutputRows& view, int64_t dim) const {
  return read_view(view, inputs.shape.batch, inputs.shape.heads, inputs.shape.key_length, dim);
}

CastAttentionGradientProblem one_cast_gradient_batch(CastAttentionGradientProblem problem,
                                                     int64_t b) {
  problem.gate = part(problem.gate, b, problem.forward.inputs.shape.key_length);
  problem.forward = one_cast_batch(problem.forward, b);
  problem.output_gradient = alone(problem.output_gradient, b);
  problem.gradients = alone(problem.gradients, b, -1);
  return problem;
}

}  // namespace cluster_attention::test
