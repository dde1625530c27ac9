#include "native/reference/sparse.h"

#include <algorithm>

#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/sparse_arrays.h"

namespace cluster_attention::test {

namespace {

using Fixture = SparseFixture;

TEST("sparse: both products match the reference") {
  for (const Case& one : cases()) {
    for (bool per_cluster : {false, true}) {
      const Scope scope(one.name + (per_cluster ? " per cluster" : " per query"));
      Fixture fixture(one, per_cluster);
      CHECK_RUNS(fixture.dot, fixture.arrays);
      CHECK_CLOSE(fixture.dots(), reference::sparse_dot(fixture.dot));
      CHECK_RUNS(fixture.sum, fixture.arrays);
      // Where a single sum is all there is, and cancels, its terms are the measure.
      CHECK_CLOSE(fixture.sums(), reference::sparse_weighted_sum(fixture.sum), kRelativeL2, 0.1);
      fixture.arrays.snapshot();
    }
  }
}

TEST("sparse: long lists keep the bound") {
  for (bool per_cluster : {false, true}) {
    const Scope scope(per_cluster ? "per cluster" : "per query");
    Case which = find_case("prime");
    which.batch = which.heads = 1;
    which.query_length = 3;
    which.top_k = which.key_length = 20'000;
    SparseFixture fixture(which, per_cluster);
    const SparseWeightedSumProblem& problem = fixture.sum;
    const int64_t lists = per_cluster ? problem.sparse.clusters : problem.shape.query_length;
    std::fill_n(fixture.indices, lists * problem.sparse.k, 0);
    std::fill_n(fixture.weights, problem.shape.query_length * problem.sparse.k, 0.1f);
    CHECK_RUNS(problem, fixture.arrays);
    fixture.arrays.snapshot();
    CHECK_CLOSE(fixture.sums(), reference::sparse_weighted_sum(problem), 3e-6);
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
