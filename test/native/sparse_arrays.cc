#include "test/native/sparse_arrays.h"

namespace cluster_attention::test {

SparseFixture::SparseFixture(const Case& which, bool per_cluster, Fill fill)
    : AttentionArrays(which, fill) {
  const AttentionShape& shape = inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  SparseIndices sparse;
  sparse.k = which.top_k;  // the width of the lists, whatever the number of keys
  int64_t lists = sequences * shape.query_length;
  if (per_cluster) {
    sparse.clusters = which.clusters;
    lists = sequences * which.clusters;
    labels = arrays.input(random_indices(sequences * shape.query_length, -1,
                                         static_cast<int32_t>(which.clusters), 5));
    sparse.labels = labels;
  }
  std::vector<int32_t> listed =
      random_indices(lists * sparse.k, 0, std::max(static_cast<int32_t>(shape.key_length), 1), 6);
  const size_t step = shape.key_length > 0 ? 9 : 1;
  for (size_t i = 0; i < listed.size(); i += step) listed[i] = -1;
  indices = arrays.input(listed);
  sparse.indices = indices;
  weights = arrays.floats(sequences * shape.query_length * sparse.k, 7, fill);

  dot.shape = sum.shape = shape;
  dot.sparse = sum.sparse = sparse;
  dot.query_lengths = sum.query_lengths = inputs.query_lengths;
  dot.key_lengths = sum.key_lengths = inputs.key_lengths;
  dot.query = inputs.query;
  dot.key = inputs.key;
  dot.output = arrays.output<float>(sequences * shape.query_length * sparse.k);
  sum.weights = weights;
  sum.value = inputs.value;
  sum.output = output;
}

namespace {

/// What both problems share, for one sequence.
template <typename Problem>
Problem one_sequence_shared(Problem problem, int64_t sequence) {
  const AttentionShape& shape = problem.shape;
  SparseIndices& sparse = problem.sparse;
  const int64_t lists = sparse.labels != nullptr ? sparse.clusters : shape.query_length;
  sparse.indices = part(sparse.indices, sequence, lists * sparse.k);
  sparse.labels = part(sparse.labels, sequence, shape.query_length);
  problem.query_lengths = part(problem.query_lengths, sequence / shape.heads, 1);
  problem.key_lengths = part(problem.key_lengths, sequence / shape.heads, 1);
  problem.shape.batch = 1;
  problem.shape.heads = 1;
  return problem;
}

}  // namespace

SparseDotProblem one_dot(const SparseDotProblem& problem, int64_t sequence) {
  const AttentionShape& shape = problem.shape;
  SparseDotProblem one = one_sequence_shared(problem, sequence);
  one.query = alone(problem.query, sequence / shape.heads, sequence % shape.heads);
  one.key = alone(problem.key, sequence / shape.heads, sequence % shape.heads);
  one.output = part(problem.output, sequence, shape.query_length * problem.sparse.k);
  return one;
}

SparseWeightedSumProblem one_sum(const SparseWeightedSumProblem& problem, int64_t sequence) {
  const AttentionShape& shape = problem.shape;
  SparseWeightedSumProblem one = one_sequence_shared(problem, sequence);
  one.weights = part(problem.weights, sequence, shape.query_length * problem.sparse.k);
  one.value = alone(problem.value, sequence / shape.heads, sequence % shape.heads);
  one.output = alone(problem.output, sequence / shape.heads, sequence % shape.heads);
  return one;
}

}  // namespace cluster_attention::test
