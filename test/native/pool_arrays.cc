#include "test/native/pool_arrays.h"

#include <algorithm>

namespace cluster_attention::test {

PoolArrays::PoolArrays(const Case& which, Similarity similarity, PoolStart start,
                       const std::vector<float>& values)
    : PoolArrays(which, similarity, start) {
  std::copy(values.begin(), values.end(), inputs);
}

PoolArrays::PoolArrays(const Case& which, Similarity similarity, PoolStart start) {
  problem.batch = which.batch;
  problem.length = which.key_length;
  problem.dim = which.head_dim;
  problem.centroids = which.clusters;
  problem.iterations = 2;
  problem.similarity = similarity;
  // Soft enough that rounding is not amplified by many steps of a sharp softmax.
  problem.temperature =
      similarity == Similarity::cosine ? 0.5f : static_cast<float>(which.head_dim);
  problem.start = start;
  inputs = arrays.floats(problem.batch * problem.length * problem.dim, 1);
  Case one_head = which;
  one_head.heads = 1;
  one_head.layout = Layout::bhld;
  poison_padding(inputs, one_head, which.key_lengths, problem.length, problem.dim);
  initial = arrays.floats(problem.batch * problem.centroids * problem.dim, 2);
  problem.inputs = inputs;
  problem.initial = start == PoolStart::given ? initial : nullptr;
  problem.lengths = arrays.optional(which.key_lengths);
  problem.output = arrays.output<float>(problem.batch * problem.centroids * problem.dim);
  problem.labels = arrays.output<int32_t>(problem.batch * problem.length);
  problem.masses = arrays.output<float>(problem.batch * problem.centroids);
}

PoolArrays tied_pool(Similarity similarity, int64_t centroids) {
  Case which = find_case("usual");
  which.batch = 60;
  which.key_length = 40;
  which.head_dim = 3;
  which.clusters = centroids;
  PoolArrays pool(which, similarity, PoolStart::given);
  pool.problem.iterations = 0;
  Random random(static_cast<uint64_t>(centroids));
  const auto fill = [&](float* rows, int64_t count) {
    std::generate_n(rows, count, [&] { return static_cast<float>(random.below(3) - 1); });
  };
  fill(pool.inputs, which.batch * which.key_length * which.head_dim);
  fill(pool.initial, which.batch * which.clusters * which.head_dim);
  return pool;
}

PoolArrays planted_pool(Similarity similarity) {
  const Case& which = find_case("prime");
  PoolArrays pool(
      which, similarity, PoolStart::given,
      planted_clusters(which.batch * which.key_length, which.head_dim, which.clusters, 5));
  pool.problem.iterations = 3;
  pool.problem.temperature = 0.0f;
  for (int64_t b = 0; b < which.batch; ++b) {
    std::copy_n(pool.inputs + b * which.key_length * which.head_dim,
                which.clusters * which.head_dim,
                pool.initial + b * which.clusters * which.head_dim);
  }
  return pool;
}

std::vector<float*> spoiled_centroids(const PoolArrays& planted) {
  const CentroidPoolProblem& problem = planted.problem;
  float* second = planted.initial + problem.centroids * problem.dim;  // of the batch
  return {planted.initial + 3, second + 2 * problem.dim};
}

std::vector<float*> spoiled_inputs(const PoolArrays& planted) {
  const CentroidPoolProblem& problem = planted.problem;
  float* second = planted.inputs + problem.length * problem.dim;
  return {planted.inputs + 5 * problem.dim + 1, second + 50 * problem.dim};
}

CentroidPoolProblem one_pool_sequence(CentroidPoolProblem problem, int64_t b) {
  problem.inputs = part(problem.inputs, b, problem.length * problem.dim);
  problem.initial = part(problem.initial, b, problem.centroids * problem.dim);
  problem.lengths = part(problem.lengths, b, 1);
  problem.output = part(problem.output, b, problem.centroids * problem.dim);
  problem.labels = part(problem.labels, b, problem.length);
  problem.masses = part(problem.masses, b, problem.centroids);
  problem.batch = 1;
  return problem;
}

std::string pool_options_name(Similarity similarity, PoolStart start) {
  return " similarity " + std::to_string(static_cast<int>(similarity)) + " start " +
         std::to_string(static_cast<int>(start));
}

}  // namespace cluster_attention::test
