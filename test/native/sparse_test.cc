#include "native/reference/sparse.h"

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// Both products over the same indices: per query, or per cluster with labels. About a tenth of the
/// slots are -1, and with key lengths some lie past the real keys, which counts as -1.
struct Fixture : AttentionArrays {
  SparseDotProblem dot;
  SparseWeightedSumProblem sum;
  int32_t* indices;
  int32_t* labels = nullptr;
  float* weights;

  Fixture(const Case& which, bool per_cluster, Fill fill = Fill::gaussian)
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
  std::vector<float> dots() const {
    const AttentionShape& shape = dot.shape;
    return read(dot.output, shape.batch * shape.heads * shape.query_length * dot.sparse.k);
  }
  std::vector<float> sums() const { return read_output(sum.output, sum.shape); }
};

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

TEST("sparse: both products match the reference") {
  for (const Case& one : cases()) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(one.name + (per_cluster ? " per cluster" : " per query"));
      Fixture fixture(one, per_cluster);
      CHECK_RUNS(fixture.dot, fixture.arrays);
      CHECK_CLOSE(fixture.dots(), reference::sparse_dot(fixture.dot));
      CHECK_RUNS(fixture.sum, fixture.arrays);
      CHECK_CLOSE(fixture.sums(), reference::sparse_weighted_sum(fixture.sum));
      fixture.arrays.snapshot();
    }
  }
}

TEST("sparse: exact on integers") {
  for (const char* name : {"prime", "ragged-transposed"}) {
    for (bool per_cluster : {false, true}) {
      Fixture fixture(find_case(name), per_cluster, Fill::integer);
      CHECK_RUNS(fixture.dot, fixture.arrays);
      CHECK_SAME(fixture.dots(), reference::sparse_dot(fixture.dot));
      CHECK_RUNS(fixture.sum, fixture.arrays);
      CHECK_SAME(fixture.sums(), reference::sparse_weighted_sum(fixture.sum));
    }
  }
}

TEST("sparse: indices and labels outside their range are named") {
  for (bool per_cluster : {false, true}) {
    for (int32_t bad : {-2, 53, 1 << 30}) {
      Fixture fixture(find_case("prime"), per_cluster);
      fixture.indices[41] = bad;
      fixture.indices[44] = bad;
      CHECK_EQUAL(describe(run_fresh(fixture.dot, fixture.arrays)), "out_of_range indices[41]");
      CHECK_EQUAL(describe(run_fresh(fixture.sum, fixture.arrays)), "out_of_range indices[41]");
    }
  }
  for (int32_t bad : {-2, 7}) {
    Fixture fixture(find_case("prime"), true);
    fixture.labels[100] = bad;
    CHECK_EQUAL(describe(run_fresh(fixture.dot, fixture.arrays)), "out_of_range labels[100]");
    CHECK_EQUAL(describe(run_fresh(fixture.sum, fixture.arrays)), "out_of_range labels[100]");
  }
}

TEST("sparse: labels of padded queries are ignored") {
  const Case& which = find_case("ragged");
  Fixture fixture(which, true);
  fixture.labels[2 * 41 * which.heads + 1] = 99;  // batch 2 has one real query
  CHECK_RUNS(fixture.dot, fixture.arrays);
  CHECK_RUNS(fixture.sum, fixture.arrays);
}

TEST("sparse: threads, batches, faults, cancellation") {
  for (const char* name : {"ragged", "ragged-transposed", "usual", "long-queries", "long-keys"}) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(name);
      Fixture fixture(find_case(name), per_cluster);
      const int64_t sequences = fixture.dot.shape.batch * fixture.dot.shape.heads;
      check_promises(fixture.dot, fixture.arrays, sequences, one_dot);
      check_promises(fixture.sum, fixture.arrays, sequences, one_sum);
    }
  }
}

TEST("sparse: NaN and Inf are named where they are read") {
  for (bool per_cluster : {false, true}) {
    const Scope scope(per_cluster ? "per cluster" : "per query");
    Fixture fixture(find_case("prime"), per_cluster);
    const AttentionShape& shape = fixture.dot.shape;
    std::fill_n(fixture.indices, 7 * fixture.dot.sparse.k, 3);  // the first seven lists read key 3
    if (per_cluster) std::fill_n(fixture.labels, 3, 2);
    check_non_finite(fixture.dot, fixture.arrays, fixture.query, "query", shape.head_dim + 5,
                     2 * shape.head_dim);
    check_non_finite(fixture.dot, fixture.arrays, fixture.key, "key", 3 * shape.head_dim + 5);
    check_non_finite(fixture.sum, fixture.arrays, fixture.weights, "weights", 6);
    check_non_finite(fixture.sum, fixture.arrays, fixture.value, "value", 3 * shape.value_dim + 5);
    // A key that no list of its sequence holds is not read.
    const int64_t lists = per_cluster ? fixture.dot.sparse.clusters : shape.query_length;
    std::fill_n(fixture.indices, lists * fixture.dot.sparse.k, 3);
    fixture.key[4 * shape.head_dim] = std::numeric_limits<float>::quiet_NaN();
    fixture.value[4 * shape.value_dim] = std::numeric_limits<float>::quiet_NaN();
    CHECK_RUNS(fixture.dot, fixture.arrays);
    CHECK_RUNS(fixture.sum, fixture.arrays);
  }
}

}  // namespace

}  // namespace cluster_attention::test
