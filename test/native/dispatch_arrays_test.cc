// The search for the NaN or Inf behind a non-finite result: over which rows are read, and how it
// ends before its end.

#include "native/dispatch_arrays.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "test/native/checks.h"

namespace cluster_attention::test {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Queries that list few of many keys, one of them NaN, and all keys that nobody lists.
struct UnlistedKeys {
  static constexpr int64_t kQueries = 20000;
  static constexpr int64_t kKeys = 100000;
  static constexpr int64_t kListed = 32;
  std::vector<float> query = std::vector<float>(kQueries, 1.0f);
  std::vector<float> key = std::vector<float>(kKeys, kNaN);
  std::vector<int32_t> indices = std::vector<int32_t>(kQueries * kListed, 7);
  std::vector<float> output = std::vector<float>(kQueries * kListed);
  SparseDotProblem problem;

  UnlistedKeys() {
    key[7] = 1.0f;
    indices.back() = static_cast<int32_t>(kKeys - 1);
    problem.shape.batch = problem.shape.heads = 1;
    problem.shape.query_length = kQueries;
    problem.shape.key_length = kKeys;
    problem.shape.head_dim = problem.shape.value_dim = 1;
    problem.query = dense_rows<const float>(query.data(), kQueries, 1);
    problem.key = dense_rows<const float>(key.data(), kKeys, 1);
    problem.sparse.indices = indices.data();
    problem.sparse.k = kListed;
    problem.output = output.data();
  }
};

}  // namespace

// A search that looked through all lists for each row would take minutes.
TEST_ONCE("dispatch: the first NaN that is read is found among many that nobody reads") {
  UnlistedKeys call;
  Context context(1);
  CHECK_EQUAL(describe(run(call.problem, CallSettings{}, context)), "non_finite key[99999]");
  call.indices[100] = 0;
  CHECK_EQUAL(describe(run(call.problem, CallSettings{}, context)), "non_finite key[0]");
}

TEST_ONCE("dispatch: the search for a NaN may be cancelled, and lack memory") {
  UnlistedKeys call;
  const volatile int32_t abort = 1;
  Context cancelled(1, &abort);
  CHECK_EQUAL(describe(ProblemArrays(call.problem).find_non_finite(cancelled)), "cancelled");
  fail_workspace_allocation(1);
  Context context(1);
  CHECK_EQUAL(describe(ProblemArrays(call.problem).find_non_finite(context)), "out_of_memory");
  fail_workspace_allocation(0);
}

}  // namespace cluster_attention::test
