#include <cmath>

#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/top_k_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(TopKFixture& fixture) {
  return [&](TopKProblem problem, Device& device) {
    problem.scores = device.stored(problem.scores, fixture.arrays);
    problem.lengths = device.at(problem.lengths, fixture.arrays);
    problem.values = device.stored(problem.values, fixture.arrays);
    problem.indices = device.at(problem.indices, fixture.arrays);
    return problem;
  };
}

const cuda::Operation<TopKProblem> kTopK = Device::backend().operations.top_k;

void check(TopKFixture& fixture, const DeviceSettings& settings = {}) {
  check_same_as_cpu(fixture.problem, fixture.arrays, kTopK, on_device(fixture), settings);
}

TEST_ONCE("CUDA top-k: the CPU's values and indices, ties and ragged rows included") {
  for (const Case& one : cases()) {
    for (Fill fill : {Fill::gaussian, Fill::integer}) {
      for (bool ragged : {false, true}) {
        const Scope scope(one.name + (ragged ? " ragged" : ""));
        // A few rows show what all do.
        Case few = one;
        few.batch = std::min<int64_t>(few.batch, 1);
        few.query_length = std::min<int64_t>(few.query_length, 5);
        TopKFixture fixture(few, fill, ragged);
        check(fixture);
      }
    }
  }
}

/// Whole rows, and more results than are sorted at a time.
TEST_ONCE("CUDA top-k: many results") {
  Case which = find_case("one");
  which.query_length = 1;
  which.key_length = 5003;
  for (int64_t k : {1, 2047, 2048, 2049, 5003}) {
    for (Fill fill : {Fill::gaussian, Fill::integer}) {
      const Scope scope(std::to_string(k));
      which.top_k = k;
      TopKFixture fixture(which, fill, k == 2049);
      check(fixture);
    }
  }
}

TEST_ONCE("CUDA top-k: zeros of both signs are equal, and keep their signs") {
  Case which = find_case("prime");
  which.top_k = 20;
  TopKFixture fixture(which, Fill::integer);
  for (int64_t i = 0; i < fixture.problem.rows * fixture.problem.columns; ++i) {
    if (fixture.scores[i] == 0.0f && i % 3 == 0) fixture.scores[i] = -0.0f;
  }
  check(fixture);
}

TEST_ONCE("CUDA top-k: scores stored as bfloat16, and rounded to it") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    for (const char* name : {"prime", "ragged"}) {
      TopKFixture fixture(find_case(name), Fill::gaussian, true);
      if (settings.precision == Precision::float32) {
        round_in_place({{fixture.scores, fixture.problem.rows * fixture.problem.columns}});
      }
      check(fixture, settings);
    }
  }
}

TEST_ONCE("CUDA top-k: NaN and Inf are noticed, NaN is above everything") {
  TopKFixture fixture(find_case("prime"), Fill::gaussian);
  const TopKProblem& problem = fixture.problem;
  const int64_t index = problem.columns * 3 + 11;
  check_notices_non_finite(problem, fixture.arrays, kTopK, on_device(fixture), fixture.scores,
                           index);
  fixture.scores[index] = std::numeric_limits<float>::quiet_NaN();
  fixture.scores[index + 5] = std::numeric_limits<float>::infinity();
  CHECK_EQUAL(device_status(problem, fixture.arrays, kTopK, on_device(fixture)), "ok");
  CHECK_EQUAL(problem.indices[3 * problem.k], 11);
  CHECK(std::isnan(problem.values[3 * problem.k]));
  CHECK_EQUAL(problem.indices[3 * problem.k + 1], 16);
  // The best candidate of all: nothing is above a NaN in the first column.
  fixture.scores[0] = fixture.scores[problem.columns * 3] = fixture.scores[index];
  CHECK_EQUAL(device_status(problem, fixture.arrays, kTopK, on_device(fixture)), "ok");
  CHECK_EQUAL(problem.indices[0], 0);
  CHECK(std::isnan(problem.values[0]));
  CHECK_EQUAL(problem.indices[3 * problem.k], 0);
  CHECK_EQUAL(problem.indices[3 * problem.k + 1], 11);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(device_status(problem, fixture.arrays, kTopK, on_device(fixture), &abort),
              "cancelled");
}

}  // namespace

}  // namespace cluster_attention::test
