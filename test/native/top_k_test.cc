#include "native/reference/top_k.h"

#include "test/native/attention_arrays.h"
#include "test/native/checks.h"
#include "test/native/compare.h"
#include "test/native/top_k_arrays.h"

namespace cluster_attention::test {

namespace {

using Fixture = TopKFixture;

TopKProblem one_row(TopKProblem problem, int64_t row) {
  problem.scores = part(problem.scores, row, problem.columns);
  problem.lengths = part(problem.lengths, row, 1);
  problem.values = part(problem.values, row, problem.k);
  problem.indices = part(problem.indices, row, problem.k);
  problem.rows = 1;
  return problem;
}

void check_reference(Fixture& fixture) {
  const TopKProblem& problem = fixture.problem;
  CHECK_RUNS(problem, fixture.arrays);
  fixture.arrays.snapshot();
  const reference::TopKResult expected = reference::top_k(problem);
  CHECK_SAME(read(problem.values, problem.rows * problem.k), expected.values);
  CHECK_SAME(read(problem.indices, problem.rows * problem.k), expected.indices);
}

TEST("top-k: equals the reference, ties included") {
  for (const Case& one : cases()) {
    for (Fill fill : {Fill::gaussian, Fill::integer}) {
      for (bool ragged : {false, true}) {
        const Scope scope(one.name + (ragged ? " ragged" : ""));
        Fixture fixture(one, fill, ragged);
        check_reference(fixture);
      }
    }
  }
}

TEST("top-k: every k up to all columns, long rows") {
  Case which = find_case("one");
  which.query_length = 3;
  for (int64_t columns : {1, 2, 31, 64, 1000, 5000}) {
    for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{32}, columns / 2, columns - 1, columns}) {
      if (k < 1 || k > columns) continue;
      const Scope scope(std::to_string(k) + " of " + std::to_string(columns));
      which.key_length = columns;
      which.top_k = k;
      Fixture fixture(which, k % 2 == 0 ? Fill::integer : Fill::gaussian);
      check_reference(fixture);
    }
  }
}

TEST("top-k: sorted rows, either way") {
  Case which = find_case("one");
  which.key_length = 3000;
  which.top_k = 32;
  for (float direction : {1.0f, -1.0f, 0.0f}) {
    Fixture fixture(which, Fill::gaussian);
    for (int64_t s = 0; s < 3000; ++s) fixture.scores[s] = direction * static_cast<float>(s);
    check_reference(fixture);
  }
}

TEST("top-k: threads, batches, faults, cancellation") {
  for (const char* name : {"prime", "prime-long", "long-keys"}) {
    Fixture fixture(find_case(name), Fill::gaussian, true);
    check_promises(fixture.problem, fixture.arrays, fixture.problem.rows, one_row);
  }
}

TEST("top-k: NaN and Inf are named") {
  Fixture fixture(find_case("prime"), Fill::gaussian);
  check_non_finite(fixture.problem, fixture.arrays, fixture.scores, "scores", 53 * 10 + 4,
                   53 * 11 + 1);
}

TEST("top-k: NaN ranks above every number under 'propagate'") {
  Fixture fixture(find_case("prime"), Fill::gaussian);
  fixture.scores[20] = std::numeric_limits<float>::infinity();
  fixture.scores[30] = std::numeric_limits<float>::quiet_NaN();
  const CallSettings settings{NonFinite::propagate, Precision::float32};
  CHECK(run_fresh(fixture.problem, fixture.arrays, 2, settings).ok());
  CHECK_EQUAL(fixture.problem.indices[0], 30);
  CHECK_EQUAL(fixture.problem.indices[1], 20);
  CHECK(fixture.problem.values[0] != fixture.problem.values[0]);
}

}  // namespace

}  // namespace cluster_attention::test
