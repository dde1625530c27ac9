#include "test/native/clustered_arrays.h"

namespace cluster_attention::test {

ClusteredFixture::ClusteredFixture(const Case& which, Grouping grouping, int64_t top_k, Fill fill)
    : AttentionArrays(which, fill) {
  const AttentionShape& shape = inputs.shape;
  problem.inputs = inputs;
  problem.clusters = which.clusters;
  problem.top_k = top_k < 0 ? which.clamped_top_k() : top_k;
  problem.grouping = grouping;
  problem.bits = which.bits;
  problem.iterations = grouping == Grouping::euclidean ? 4 : 10;
  planes = arrays.floats(which.bits * (shape.head_dim + 1), 21, fill);
  problem.planes = planes;
  std::vector<int32_t> labels =
      random_indices(sequences() * shape.query_length, 0, static_cast<int32_t>(which.clusters), 22);
  for (size_t i = 7; i < labels.size(); i += 13) labels[i] = -1;
  given_labels = arrays.input(labels);
  problem.given_labels = given_labels;
  problem.output = output;
  problem.labels = arrays.output<int32_t>(sequences() * shape.query_length);
  problem.counts = arrays.output<int32_t>(sequences() * which.clusters);
  problem.indices = arrays.output<int32_t>(sequences() * which.clusters * problem.top_k);
}

reference::ClusteredChoices ClusteredFixture::choices() const {
  return {read(problem.labels, sequences() * inputs.shape.query_length),
          read(problem.indices, sequences() * problem.clusters * problem.top_k)};
}

std::vector<int32_t> ClusteredFixture::counts() const {
  return read(problem.counts, sequences() * problem.clusters);
}

ClusteredAttentionProblem one_sequence(ClusteredAttentionProblem problem, int64_t sequence) {
  const AttentionShape shape = problem.inputs.shape;
  const int64_t b = sequence / shape.heads;
  const int64_t h = sequence % shape.heads;
  problem.inputs = alone(problem.inputs, b, h);
  problem.output = alone(problem.output, b, h);
  problem.given_labels = part(problem.given_labels, sequence, shape.query_length);
  problem.labels = part(problem.labels, sequence, shape.query_length);
  problem.counts = part(problem.counts, sequence, problem.clusters);
  problem.indices = part(problem.indices, sequence, problem.clusters * problem.top_k);
  problem.cluster_values =
      part(problem.cluster_values, sequence, problem.clusters * shape.value_dim);
  problem.cluster_logsumexp = part(problem.cluster_logsumexp, sequence, problem.clusters);
  return problem;
}

}  // namespace cluster_attention::test
