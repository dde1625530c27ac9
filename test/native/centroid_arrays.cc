#include "test/native/centroid_arrays.h"

#include <algorithm>
#include <cmath>

namespace cluster_attention::test {

std::string CentroidOptions::name() const {
  return std::string(normalize == Normalize::centroids ? " centroids" : " inputs") +
         (aggregate == Collect::sum ? " sum" : " mean") + (weights ? " weights" : "") +
         (neighbors ? " neighbors" : "");
}

std::vector<CentroidOptions> all_centroid_options() {
  std::vector<CentroidOptions> list;
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (Collect aggregate : {Collect::sum, Collect::mean}) {
      for (int bits = 0; bits < 4; ++bits) {
        list.push_back({normalize, aggregate, (bits & 1) != 0, (bits & 2) != 0});
      }
    }
  }
  return list;
}

CentroidArrays::CentroidArrays(const Case& which, const CentroidOptions& options, Fill fill)
    : AttentionArrays(which, fill) {
  const AttentionShape& shape = inputs.shape;
  problem.inputs = inputs;
  problem.normalize = options.normalize;
  problem.aggregate = options.aggregate;
  if (options.weights) add_weights(which);
  if (options.neighbors) add_neighbors(which);
  problem.output = output;
  problem.labels = arrays.output<int32_t>(sequences() * shape.key_length);
  problem.masses = arrays.output<float>(sequences() * shape.query_length);
  problem.objective = arrays.output<double>(shape.batch);
  if (options.normalize == Normalize::inputs) {
    problem.logsumexp = arrays.output<float>(sequences() * shape.query_length);
  }
}

void CentroidArrays::add_weights(const Case& which) {
  const AttentionShape& shape = inputs.shape;
  std::vector<float> values = random_floats(shape.batch * shape.key_length, 31);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i % 5 == 2 ? 0.0f : std::abs(values[i]);
  }
  weights = arrays.input(values);
  problem.weights = weights;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const OutputRows keys =
      dense_rows(key, which.layout, shape.heads, shape.key_length, shape.head_dim);
  const OutputRows inputs_of_values =
      dense_rows(value, which.layout, shape.heads, shape.key_length, shape.value_dim);
  for (int64_t i = 2; i < shape.batch * shape.key_length; i += 5) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t b = i / shape.key_length;
      std::fill_n(keys.row(b, h, i % shape.key_length), shape.head_dim, nan);
      std::fill_n(inputs_of_values.row(b, h, i % shape.key_length), shape.value_dim, nan);
    }
  }
}

void CentroidArrays::add_neighbors(const Case& which) {
  const AttentionShape& shape = inputs.shape;
  problem.neighbor_count = which.top_k;
  std::vector<int32_t> lists = random_indices(shape.batch * shape.query_length * which.top_k, -1,
                                              static_cast<int32_t>(shape.key_length), 32);
  for (size_t i = 1; i < lists.size(); i += 4) lists[i] = lists[i - 1];
  neighbors = arrays.input(lists);
  problem.neighbors = neighbors;
}

Case many_neighbors_case(int64_t centroids) {
  Case which = find_case("usual");
  which.batch = 1;
  which.heads = 3;
  which.query_length = centroids;
  which.key_length = 500;
  which.head_dim = 3;
  which.value_dim = 2;
  which.top_k = 1000;
  return which;
}

Case long_softmax_case() {
  Case which = find_case("usual");
  which.batch = which.heads = 1;
  which.query_length = 20'000;
  which.key_length = which.top_k = 3;
  which.head_dim = which.value_dim = 2;
  return which;
}

void even_out(CentroidArrays& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  std::fill_n(fixture.query, shape.query_length * shape.head_dim, 0.5f);
  std::fill_n(fixture.query, shape.head_dim, 1.5f);
  std::fill_n(fixture.key, shape.key_length * shape.head_dim, 1.0f);
  for (int64_t i = 0; i < shape.query_length * fixture.problem.neighbor_count; ++i) {
    fixture.neighbors[i] = static_cast<int32_t>(i % shape.key_length);
  }
}

CentroidArrays all_listed(Normalize normalize, Fill fill) {
  Case which = find_case("tile-25");
  which.top_k = which.key_length;
  CentroidArrays made(which, {normalize, Collect::sum, false, true}, fill);
  const int64_t keys = which.key_length;
  for (int64_t i = 0; i < which.batch * which.query_length * keys; ++i) {
    made.neighbors[i] = static_cast<int32_t>(keys - 1 - i % keys);
  }
  return made;
}

CentroidAttentionProblem one_centroid_batch(CentroidAttentionProblem problem, int64_t b) {
  const AttentionShape shape = problem.inputs.shape;
  problem.inputs = alone(problem.inputs, b);
  problem.output = alone(problem.output, b);
  problem.weights = part(problem.weights, b, shape.key_length);
  problem.neighbors = part(problem.neighbors, b, shape.query_length * problem.neighbor_count);
  problem.labels = part(problem.labels, b, shape.heads * shape.key_length);
  problem.masses = part(problem.masses, b, shape.heads * shape.query_length);
  problem.logsumexp = part(problem.logsumexp, b, shape.heads * shape.query_length);
  problem.objective = part(problem.objective, b, 1);
  return problem;
}

}  // namespace cluster_attention::test
