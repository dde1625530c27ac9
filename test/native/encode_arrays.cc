#include "test/native/encode_arrays.h"

#include <cmath>

namespace cluster_attention::test {

EncodeArrays::EncodeArrays(const Case& which, PoolStart start) {
  problem.batch = which.batch;
  problem.length = which.key_length;
  problem.dim = which.value_dim;
  problem.heads = which.heads;
  problem.head_dim = which.head_dim;
  const bool given = start == PoolStart::given;
  problem.centroids =
      given || which.clusters < which.key_length ? which.clusters : which.key_length;
  problem.steps = 2;
  problem.step_size = 0.5f;
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(which.head_dim)));
  problem.start = start;
  inputs = arrays.floats(problem.batch * problem.length * problem.dim, 1);
  initial = arrays.floats(problem.batch * problem.centroids * problem.dim, 2);
  for (int i = 0; i < 4; ++i) {
    std::vector<float> values =
        random_floats(problem.heads * problem.head_dim * problem.dim, 3 + i);
    const int64_t inner = i < 3 ? problem.dim : problem.heads * problem.head_dim;
    for (float& value : values) value /= std::sqrt(static_cast<float>(inner));
    matrices[i] = arrays.input(values);
  }
  problem.inputs = inputs;
  problem.initial = given ? initial : nullptr;
  problem.query_weight = matrices[0];
  problem.key_weight = matrices[1];
  problem.value_weight = matrices[2];
  problem.output_weight = matrices[3];
  problem.output = arrays.output<float>(problem.batch * problem.centroids * problem.dim);
}

void EncodeArrays::add_weights() {
  std::vector<float> values = random_floats(problem.batch * problem.length, 11);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 5 == 2 ? 0.0f : std::abs(values[i]);
  weights = arrays.input(values);
  problem.weights = weights;
}

void EncodeArrays::add_neighbors(int64_t count) {
  problem.neighbor_count = count;
  neighbors = arrays.input(random_indices(problem.batch * problem.centroids * count, -1,
                                          static_cast<int32_t>(problem.length), 12));
  problem.neighbors = neighbors;
}

CentroidEncodeProblem one_encode_sequence(CentroidEncodeProblem problem, int64_t b) {
  problem.inputs = part(problem.inputs, b, problem.length * problem.dim);
  problem.initial = part(problem.initial, b, problem.centroids * problem.dim);
  problem.weights = part(problem.weights, b, problem.length);
  problem.neighbors = part(problem.neighbors, b, problem.centroids * problem.neighbor_count);
  problem.output = part(problem.output, b, problem.centroids * problem.dim);
  problem.batch = 1;
  return problem;
}

}  // namespace cluster_attention::test
