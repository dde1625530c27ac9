// CAST with NaN and Inf.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "test/cuda/cast_device.h"
#include "test/cuda/tile_cases.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

TEST_ONCE("CUDA CAST: NaN and Inf in rows that are read show") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (Selection selection : kSelections) {
    for (Activation activation : kActivations) {
      CastArrays fixture(find_case("prime"), selection, activation);
      if (selection == Selection::given) std::iota(fixture.given, fixture.given + 11, 0);
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      // The value of a token is read where the token is in a cluster.
      const int32_t token = fixture.problem.indices[0];
      float* const places[] = {fixture.query + 17 * 3 + 3, fixture.key + 17 * 3 + 3,
                               fixture.surrogates + 17 * 3 + 3, fixture.gate + 3,
                               fixture.value + 13 * token + 3};
      for (size_t i = 0; i < 5; ++i) {
        for (float bad : {std::numeric_limits<float>::quiet_NaN(), -kInfinity}) {
          const Scope scope(cast_options_name(selection, activation) + " " + std::to_string(bad) +
                            " in array " + std::to_string(i));
          const float saved = *places[i];
          *places[i] = bad;
          bool non_finite = false;
          CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
          CHECK(non_finite);
          *places[i] = saved;
        }
      }
    }
  }
}

/// Runs on the CPU, where what is not finite may spread.
void run_here(CastArrays& fixture) {
  fixture.arrays.poison();
  Context context(1);
  CallSettings settings;
  settings.non_finite = NonFinite::propagate;
  CHECK_EQUAL(describe(run(fixture.problem, settings, context)), "ok");
}

/// NaN in a surrogate: every score of every token is NaN, and tokens go by their index.
TEST_ONCE("CUDA CAST: a surrogate that is NaN leaves the order of the tokens") {
  for (int64_t clusters : {3, 65, 66}) {
    for (Selection selection : {Selection::top_k, Selection::single_assignment}) {
      const Scope scope(std::to_string(clusters) + " clusters");
      Case one = find_case("prime");
      one.clusters = clusters;
      CastArrays fixture(one, selection);
      fixture.surrogates[(clusters - 1) * one.head_dim] = std::numeric_limits<float>::quiet_NaN();
      run_here(fixture);
      const std::vector<int32_t> expected = fixture.indices();
      bool non_finite = false;
      CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
      CHECK(non_finite);
      CHECK_SAME(fixture.indices(), expected);
    }
  }
}

/// Results of the GPU are NaN where the CPU's are, and close to them elsewhere.
void check_reach(CastArrays& fixture, Precision precision) {
  run_here(fixture);
  const std::vector<float> expected = fixture.result();
  const bool rounds = precision == Precision::bfloat16;
  Device device(rounds ? cuda::Storage::bfloat16 : cuda::Storage::float32);
  fixture.arrays.poison();
  const CastAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
  CHECK_EQUAL(describe(device.run(Device::backend().operations.cast_attention, there, precision)),
              "ok");
  device.fetch(fixture.arrays);
  const std::vector<float> actual = fixture.result();
  std::vector<float> finite;
  std::vector<double> expected_finite;
  for (size_t i = 0; i < actual.size(); ++i) {
    CHECK_EQUAL(std::isnan(actual[i]), std::isnan(expected[i]));
    if (std::isnan(expected[i]) || std::isnan(actual[i])) continue;
    finite.push_back(actual[i]);
    expected_finite.push_back(expected[i]);
  }
  CHECK(finite.size() < actual.size());
  CHECK_CLOSE(finite, expected_finite, rounds ? kRoundedBound : kSplitBound);
}

/// Clusters 0 and C - 1 of the first batch entry hold the tokens from 13 and from 20 on.
CastArrays make_reach(const Case& one) {
  CastArrays fixture(one, Selection::given);
  int32_t* const given = fixture.given;
  // No other cluster has the tokens that are about to have something that is not finite.
  std::replace_if(
      given, given + fixture.slots(), [](int32_t n) { return n == 13 || n == 20 || n == 21; }, -1);
  const int64_t size = fixture.problem.cluster_size;
  std::iota(given, given + size, 13);
  std::iota(given + (fixture.problem.clusters - 1) * size, given + fixture.problem.clusters * size,
            20);
  return fixture;
}

TEST_ONCE("CUDA CAST: what is not finite reaches the rows that depend on it") {
  std::vector<Case> list = cast_chunk_cases();
  list.push_back(cast_tile_case({60, 17, 130, 11, 5}));  // in no chunks
  for (const Case& one : list) {
    for (Precision precision : {Precision::float32, Precision::bfloat16}) {
      const bool rounds = precision == Precision::bfloat16;
      const Scope scope(one.name + (rounds ? " bfloat16" : ""));
      const float nan = std::numeric_limits<float>::quiet_NaN();
      CastArrays values = make_reach(one);
      if (rounds) round_inputs(values);
      float* const rows = const_cast<float*>(values.problem.inputs.value.row(0, 0, 0));
      const int64_t stride = values.problem.inputs.value.row_stride;
      rows[13 * stride + one.value_dim * 3 / 4] = nan;
      rows[20 * stride] = nan;
      check_reach(values, precision);
      // A key's factor past the range: the summary alone is not finite, not what members get.
      CastArrays gates = make_reach(one);
      if (rounds) round_inputs(gates);
      // Of either sign: one of two products is +Inf.
      gates.gate[20] = gates.gate[21] = -0x1p127f;
      float* const key = const_cast<float*>(gates.problem.inputs.key.row(0, 0, 20));
      float* const other = const_cast<float*>(gates.problem.inputs.key.row(0, 0, 21));
      for (int64_t d = 0; d < one.head_dim; ++d) other[d] = -(key[d] *= 64.0f);
      check_reach(gates, precision);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
