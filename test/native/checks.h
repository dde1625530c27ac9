#pragma once

// What every operation promises, checked the same way for all of them: problems are plain structs
// and outputs are bytes in Arrays.

#include <limits>
#include <string>

#include "native/dispatch.h"
#include "native/simd/simd.h"
#include "test/native/attention_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

/// Runs with fresh outputs and one call's settings; `threads` as given.
template <typename Problem>
Status run_fresh(const Problem& problem, Arrays& arrays, int threads = 2,
                 const CallSettings& settings = {}) {
  arrays.poison();
  Context context(threads);
  return run(problem, settings, context);
}

/// Runs and expects success; the outputs are in `arrays`.
#define CHECK_RUNS(problem, arrays)                                                               \
  CHECK_EQUAL(                                                                                    \
      ::cluster_attention::test::describe(::cluster_attention::test::run_fresh(problem, arrays)), \
      "ok")

std::string describe(const Status& status);

inline void check_same_bytes(const std::vector<unsigned char>& actual,
                             const std::vector<unsigned char>& expected, const std::string& what) {
  if (actual == expected) return;
  size_t i = 0;
  while (i < actual.size() && actual[i] == expected[i]) ++i;
  std::ostringstream message;
  message << what << " changes the outputs, first at byte " << i << " of " << actual.size();
  fail(__FILE__, __LINE__, message.str());
}

/// The same bits for every number of threads.
template <typename Problem>
void check_threads(const Problem& problem, Arrays& arrays) {
  CHECK_EQUAL(describe(run_fresh(problem, arrays, 1)), "ok");
  const auto expected = arrays.snapshot();
  for (int threads : {1, 2, 3, 8}) {
    CHECK_EQUAL(describe(run_fresh(problem, arrays, threads)), "ok");
    check_same_bytes(arrays.snapshot(), expected, std::to_string(threads) + " threads");
  }
}

/// The same bits whether sequences come in a batch or one by one: part(problem, i) is the problem
/// of sequence i, with outputs in the same places.
template <typename Problem, typename Part>
void check_alone(const Problem& problem, Arrays& arrays, int64_t parts, Part part) {
  CHECK_EQUAL(describe(run_fresh(problem, arrays)), "ok");
  const auto expected = arrays.snapshot();
  arrays.poison();
  for (int64_t i = 0; i < parts; ++i) {
    Context context(2);
    CHECK_EQUAL(describe(run(part(problem, i), CallSettings{}, context)), "ok");
  }
  check_same_bytes(arrays.snapshot(), expected, "running sequences one by one");
}

/// A raised abort flag ends the call.
template <typename Problem>
void check_cancelled(const Problem& problem) {
  const volatile int32_t abort = 1;
  Context context(2, &abort);
  CHECK_EQUAL(describe(run(problem, CallSettings{}, context)), "cancelled");
}

/// Fails the first, the second, ... allocation until the call succeeds: each time it reports
/// out_of_memory and gives everything back, and the call after them is right. At least `least`
/// are made.
template <typename Problem>
void check_allocation_failures(const Problem& problem, Arrays& arrays, int64_t least = 0,
                               const CallSettings& settings = {}) {
  CHECK_EQUAL(describe(run_fresh(problem, arrays, 2, settings)), "ok");
  const auto expected = arrays.snapshot();
  for (int64_t k = 1; k < 1000; ++k) {
    const Scope scope("allocation " + std::to_string(k));
    fail_workspace_allocation(k);
    const Status status = run_fresh(problem, arrays, 2, settings);
    fail_workspace_allocation(0);
    CHECK_EQUAL(workspace_bytes_in_use(), 0);
    if (status.ok()) {
      CHECK(k > least);
      check_same_bytes(arrays.snapshot(), expected, "a failed allocation before");
      return;
    }
    CHECK_EQUAL(describe(status), "out_of_memory");
  }
  fail(__FILE__, __LINE__, "still fails after 1000 allocations");
}

/// All of the above on one problem.
template <typename Problem, typename Part>
void check_promises(const Problem& problem, Arrays& arrays, int64_t parts, Part part) {
  check_threads(problem, arrays);
  check_alone(problem, arrays, parts, part);
  check_cancelled(problem);
  check_allocation_failures(problem, arrays);
}

/// NaN, Inf or -Inf at data[index] of a row that is read is reported with the argument and that
/// index; under 'propagate' the call succeeds. A second one at data[later] (-1: none) changes
/// nothing.
template <typename Problem>
void check_non_finite(const Problem& problem, Arrays& arrays, float* data, const char* argument,
                      int64_t index, int64_t later = -1) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::string expected =
      std::string("non_finite ") + argument + "[" + std::to_string(index) + "]";
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    const Scope scope("with " + std::to_string(bad) + " in " + argument);
    const float saved = data[index];
    const float saved_later = later < 0 ? 0.0f : data[later];
    if (later >= 0) data[later] = bad;
    data[index] = bad;
    CHECK_EQUAL(describe(run_fresh(problem, arrays)), expected);
    CHECK_EQUAL(describe(run_fresh(problem, arrays, 2, {NonFinite::propagate, {}})), "ok");
    data[index] = saved;
    if (later >= 0) data[later] = saved_later;
  }
}

/// -Inf in a query or key that only lowers logits leaves every weight finite: it must be found all
/// the same. The fixture's queries and keys are made to have 1 in the column of the fault.
template <typename Fixture>
void check_silent_infinity(Fixture& fixture) {
  const AttentionShape& shape = fixture.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  const int64_t column = shape.head_dim - 1;
  fill_column(fixture.query, sequences * shape.query_length, shape.head_dim, column, 1.0f);
  fill_column(fixture.key, sequences * shape.key_length, shape.head_dim, column, 1.0f);
  const struct {
    const char* argument;
    float* data;
    int64_t row;
  } faults[] = {{"key", fixture.key, shape.key_length / 2},
                {"query", fixture.query, shape.query_length / 2}};
  for (const auto& fault : faults) {
    const int64_t index = fault.row * shape.head_dim + column;
    fault.data[index] = -std::numeric_limits<float>::infinity();
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)),
                std::string("non_finite ") + fault.argument + "[" + std::to_string(index) + "]");
    fault.data[index] = 1.0f;
  }
}

float round_to_bfloat16(float value);

/// Inputs that precision: 'bfloat16' rounds: data and number of elements.
using RoundedInputs = std::vector<std::pair<float*, int64_t>>;
void round_in_place(const RoundedInputs& inputs);

/// bfloat16 is the fp32 kernel on rounded inputs: rounding them beforehand gives the same bits.
template <typename Problem>
void check_bfloat16(const Problem& problem, Arrays& arrays, const RoundedInputs& inputs) {
  CHECK_EQUAL(describe(run_fresh(problem, arrays, 2, {{}, Precision::bfloat16})), "ok");
  const auto actual = arrays.snapshot();
  round_in_place(inputs);
  CHECK_EQUAL(describe(run_fresh(problem, arrays)), "ok");
  check_same_bytes(actual, arrays.snapshot(), "bfloat16 against rounded inputs");
}

/// Where products are made of bfloat16 values, weights are rounded to it as well.
inline double bfloat16_bound() { return simd().multiplies_bfloat16 ? 0x1p-8 : kRelativeL2; }

}  // namespace cluster_attention::test
