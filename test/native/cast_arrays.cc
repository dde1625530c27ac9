#include "test/native/cast_arrays.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cluster_attention::test {

CastArrays::CastArrays(const Case& which, Selection selection, Activation activation)
    : AttentionArrays(self_attention(which)) {
  const AttentionShape& shape = inputs.shape;
  problem.inputs = inputs;
  problem.inputs.query_lengths = nullptr;
  problem.clusters = which.clusters;
  problem.cluster_size = which.clamped_cluster_size();
  if (selection == Selection::single_assignment) {
    const int64_t needed = (shape.key_length + which.clusters - 1) / which.clusters;
    problem.cluster_size = std::max(problem.cluster_size, needed);
  }
  if (selection == Selection::given) problem.cluster_size = which.cluster_size;
  problem.selection = selection;
  problem.activation = activation;
  // Small enough that step 2 does not saturate: there fp32 has ties where the reference has none.
  std::vector<float> values = random_floats(shape.heads * which.clusters * shape.head_dim, 41);
  const float spread = 0.3f / std::sqrt(static_cast<float>(shape.heads * shape.head_dim));
  for (float& value : values) value *= spread;
  surrogates = arrays.input(values);
  gate = arrays.floats(shape.batch * shape.key_length, 42);
  Case one_head = which;
  one_head.heads = 1;
  one_head.layout = Layout::bhld;
  poison_padding(gate, one_head, which.key_lengths, shape.key_length, 1);
  problem.surrogates = surrogates;
  problem.gate = gate;
  if (selection == Selection::given) {
    given = arrays.input(given_indices());
    problem.given_indices = given;
  }
  problem.output = output;
  problem.indices = arrays.output<int32_t>(slots());
  problem.coverage = arrays.output<double>(shape.batch);
}

/// Distinct tokens in each cluster, padded ones among them, and an empty slot here and there.
std::vector<int32_t> CastArrays::given_indices() const {
  Random random(43);
  std::vector<int32_t> all;
  std::vector<int32_t> tokens(inputs.shape.key_length);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (int64_t c = 0; c < inputs.shape.batch * problem.clusters; ++c) {
    for (size_t i = 1; i < tokens.size(); ++i) {
      std::swap(tokens[i], tokens[random.below(static_cast<int64_t>(i) + 1)]);
    }
    for (int64_t slot = 0; slot < problem.cluster_size; ++slot) {
      const bool empty = slot >= inputs.shape.key_length || random.below(6) == 0;
      all.push_back(empty ? -1 : tokens[slot]);
    }
  }
  return all;
}

CastAttentionProblem one_cast_batch(CastAttentionProblem problem, int64_t b) {
  const int64_t slots = problem.clusters * problem.cluster_size;
  problem.inputs = alone(problem.inputs, b);
  problem.output = alone(problem.output, b);
  problem.gate = part(problem.gate, b, problem.inputs.shape.key_length);
  problem.given_indices = part(problem.given_indices, b, slots);
  problem.indices = part(problem.indices, b, slots);
  problem.coverage = part(problem.coverage, b, 1);
  return problem;
}

std::string cast_options_name(Selection selection, Activation activation) {
  static const char* const kNames[] = {" top-k", " single assignment", " given"};
  return kNames[static_cast<int>(selection)] +
         std::string(activation == Activation::laplace ? " laplace" : " softmax");
}

}  // namespace cluster_attention::test
