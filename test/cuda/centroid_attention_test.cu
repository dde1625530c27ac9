#include <cmath>

#include "native/reference/centroid_attention.h"
#include "test/cuda/launches.h"
#include "test/cuda/promises.h"
#include "test/cuda/tile_cases.h"
#include "test/native/centroid_arrays.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones.
constexpr double kSplitBound = 2e-5;
/// Weights and values are rounded to bfloat16: 2^-9 each.
constexpr double kRoundedBound = 0x1p-7;

CentroidAttentionProblem on_device(CentroidAttentionProblem problem, Device& device,
                                   const Arrays& arrays) {
  problem.inputs = device.inputs(problem.inputs, arrays);
  problem.output = device.stored(problem.output, arrays);
  problem.weights = device.at(problem.weights, arrays);
  problem.neighbors = device.at(problem.neighbors, arrays);
  problem.labels = device.at(problem.labels, arrays);
  problem.masses = device.at(problem.masses, arrays);
  problem.objective = device.at(problem.objective, arrays);
  problem.logsumexp = device.at(problem.logsumexp, arrays);
  return problem;
}

/// Runs on the device with fresh outputs, which are brought back.
Status run_there(CentroidArrays& fixture, bool* non_finite = nullptr,
                 Precision precision = Precision::float32) {
  fixture.arrays.poison();
  Device device;
  const CentroidAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
  const Status status =
      device.run(Device::backend().operations.centroid_attention, there, precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(fixture.arrays);
  return status;
}

/// tau q_j.k_i, over the inputs less the log-sum-exp of centroid j: labels are its best j.
double label_score(const CentroidArrays& fixture, const std::vector<double>& logsumexp,
                   int64_t sequence, int64_t centroid, int64_t input) {
  const AttentionInputs& in = fixture.inputs;
  const float* q = in.query.row(sequence / in.shape.heads, sequence % in.shape.heads, centroid);
  const float* k = in.key.row(sequence / in.shape.heads, sequence % in.shape.heads, input);
  double product = 0.0;
  for (int64_t d = 0; d < in.shape.head_dim; ++d) product += static_cast<double>(q[d]) * k[d];
  const double bias = fixture.problem.normalize == Normalize::inputs
                          ? logsumexp[sequence * in.shape.query_length + centroid]
                          : 0.0;
  return in.scale * product - bias;
}

/// Labels are the reference's, or as good up to rounding.
void check_labels(const CentroidArrays& fixture,
                  const reference::CentroidAttentionResult& expected) {
  const std::vector<int32_t> actual = fixture.labels();
  const int64_t inputs = fixture.inputs.shape.key_length;
  for (int64_t i = 0; i < static_cast<int64_t>(actual.size()); ++i) {
    if (actual[i] == expected.labels[i]) continue;
    CHECK(actual[i] >= 0 && expected.labels[i] >= 0);
    if (actual[i] < 0 || expected.labels[i] < 0) continue;
    const double mine = label_score(fixture, expected.logsumexp, i / inputs, actual[i], i % inputs);
    const double best =
        label_score(fixture, expected.logsumexp, i / inputs, expected.labels[i], i % inputs);
    CHECK(mine > best - 1e-4);
  }
}

void check_results(const CentroidArrays& fixture, double bound) {
  const reference::CentroidAttentionResult expected =
      reference::centroid_attention(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output, bound);
  CHECK_CLOSE(fixture.masses(), expected.masses, bound);
  check_labels(fixture, expected);
  if (fixture.problem.logsumexp != nullptr) {
    CHECK_CLOSE(
        read(fixture.problem.logsumexp, fixture.sequences() * fixture.inputs.shape.query_length),
        expected.logsumexp, bound);
  }
  CHECK_CLOSE(read(fixture.problem.objective, fixture.inputs.shape.batch), expected.objective,
              5 * bound);
}

TEST_ONCE("CUDA centroid attention: matches the reference under all options") {
  for (const Case& one : cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const bool large = one.query_length * one.key_length > 20000;
      if (large && (options.aggregate == Collect::mean || options.weights != options.neighbors)) {
        continue;
      }
      const Scope scope(one.name + options.name());
      CentroidArrays fixture(one, options);
      bool non_finite = true;
      CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
      CHECK(!non_finite);
      fixture.arrays.snapshot();
      check_results(fixture, kSplitBound);
    }
  }
}

TEST_ONCE("CUDA centroid attention: sizes around the tiles") {
  for (const Case& one : centroid_tile_cases()) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean || (options.weights && options.neighbors)) continue;
      const Scope scope(one.name + options.name());
      CentroidArrays fixture(one, options);
      bool non_finite = true;
      CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
      CHECK(!non_finite);
      fixture.arrays.snapshot();
      check_results(fixture, kSplitBound);
    }
  }
}

TEST_ONCE("CUDA centroid attention: labels equal the CPU's on integers, ties included") {
  std::vector<Case> list = centroid_tile_cases();
  list.insert(list.end(), cases().begin(), cases().end());
  for (const Case& one : list) {
    for (bool neighbors : {false, true}) {
      const Scope scope(one.name + (neighbors ? " neighbors" : ""));
      CentroidArrays fixture(one, {Normalize::centroids, Collect::sum, true, neighbors},
                             Fill::integer);
      CHECK_RUNS(fixture.problem, fixture.arrays);
      const std::vector<int32_t> expected = fixture.labels();
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      CHECK_SAME(fixture.labels(), expected);
    }
  }
}

TEST_ONCE("CUDA centroid attention: labels pass over a centroid that is NaN, with neighbors too") {
  for (Normalize normalize : {Normalize::centroids, Normalize::inputs}) {
    for (int64_t bad : {0, 3}) {
      CentroidArrays fixture = all_listed(normalize);
      fixture.query[bad * fixture.inputs.shape.head_dim] = std::numeric_limits<float>::quiet_NaN();
      const CallSettings settings = {NonFinite::propagate, {}};
      CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays, 2, settings)), "ok");
      const std::vector<int32_t> expected = fixture.labels();
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      CHECK_SAME(fixture.labels(), expected);
    }
  }
}

TEST_ONCE("CUDA centroid attention: scales of any size and sign") {
  for (float scale : {0.0f, -0.5f, 8.0f, 100.0f, 1.3e9f, -1e12f, 1e30f}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      // The reference adds log(weight) to the logit: lost even in double beside 1e12.
      if (options.weights && std::abs(scale) > 1e10f) continue;
      for (int64_t centroids : {61, 90}) {
        const Scope scope("scale " + std::to_string(scale) + options.name());
        Case which = find_case("prime");
        which.query_length = centroids;
        CentroidArrays fixture(which, options, Fill::integer);
        fixture.problem.inputs.scale = scale;
        bool non_finite = true;
        CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
        CHECK(!non_finite);
        const auto expected = reference::centroid_attention(fixture.problem);
        CHECK_CLOSE(fixture.result(), expected.output, kSplitBound);
        CHECK_CLOSE(fixture.masses(), expected.masses, kSplitBound);
      }
    }
  }
}

TEST_ONCE("CUDA centroid attention: the same bits in every order of the threads") {
  for (const char* name : {"ragged", "ragged-transposed", "tile-129"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean || (options.weights && options.neighbors)) continue;
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      const auto expected = fixture.arrays.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        check_same_bytes(fixture.arrays.snapshot(), expected, "the order of the threads");
      });
    }
  }
}

TEST_ONCE("CUDA centroid attention: the same bits alone and in a batch") {
  for (const char* name : {"ragged", "ragged-transposed", "prime"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      const auto expected = fixture.arrays.snapshot();
      fixture.arrays.poison();
      Device device;
      const CentroidAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
      for (int64_t b = 0; b < fixture.inputs.shape.batch; ++b) {
        CHECK_EQUAL(describe(device.run(Device::backend().operations.centroid_attention,
                                        one_centroid_batch(there, b))),
                    "ok");
      }
      device.fetch(fixture.arrays);
      check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
    }
  }
}

TEST_ONCE("CUDA centroid attention: optional outputs do not change the others") {
  for (const char* name : {"ragged", "tile-129"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      const std::vector<float> expected = fixture.result();
      fixture.problem.labels = nullptr;
      fixture.problem.masses = nullptr;
      fixture.problem.objective = nullptr;
      fixture.problem.logsumexp = nullptr;
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      CHECK_SAME(fixture.result(), expected);
    }
  }
}

TEST_ONCE("CUDA centroid attention: neighbors outside their range are named") {
  for (int32_t bad : {-2, 53, 1 << 30}) {
    CentroidArrays fixture(find_case("prime"), {Normalize::centroids, Collect::sum, false, true});
    fixture.neighbors[311] = bad;
    fixture.neighbors[320] = bad;
    CHECK_EQUAL(describe(run_there(fixture)), "out_of_range neighbors[311]");
  }
}

TEST_ONCE("CUDA centroid attention: NaN and Inf in rows that are read show") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t centroids : {61, 90}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      Case which = find_case("prime");
      which.query_length = centroids;
      CentroidArrays fixture(which, options);
      if (options.neighbors) std::fill_n(fixture.neighbors, centroids * 5, 3);
      std::vector<float*> places = {fixture.query + 17 * centroids + 3, fixture.key + 17 * 56 + 3,
                                    fixture.value + 13 * 56 + 3};
      if (options.weights) places.push_back(fixture.weights + 3);
      for (size_t array = 0; array < places.size(); ++array) {
        float* const place = places[array];
        for (float bad : {std::numeric_limits<float>::quiet_NaN(), -kInfinity}) {
          const Scope scope(options.name() + " " + std::to_string(bad) + " in array " +
                            std::to_string(array));
          const float saved = *place;
          *place = bad;
          bool non_finite = false;
          CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
          CHECK(non_finite);
          *place = saved;
        }
      }
    }
  }
}

/// Each sum, or mass, has a reciprocal of 0, which would make zeros that look like a result.
TEST_ONCE("CUDA centroid attention: weights whose sums leave the range of float32 show") {
  for (const CentroidOptions& options : all_centroid_options()) {
    if (!options.weights) continue;
    const Scope scope(options.name());
    Case which = find_case("prime");
    which.query_length = 1;
    CentroidArrays fixture(which, options);
    const AttentionShape& shape = fixture.inputs.shape;
    for (int64_t s = 0; s < fixture.sequences(); ++s) {
      const auto fill = [&](auto& rows, float* data, int64_t count, int64_t dim, float value) {
        for (int64_t i = 0; i < count; ++i) {
          std::fill_n(data + (rows.row(s / shape.heads, s % shape.heads, i) - data), dim, value);
        }
      };
      fill(fixture.inputs.query, fixture.query, 1, shape.head_dim, 0.0f);
      fill(fixture.inputs.value, fixture.value, shape.key_length, shape.value_dim, 1e-30f);
    }
    for (int64_t i = 0; i < shape.batch * shape.key_length; ++i) {
      if (fixture.weights[i] != 0.0f) fixture.weights[i] = 3e38f;  // else never read
    }
    bool non_finite = false;
    CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
    CHECK(non_finite);
    // The masses of lists are summed in double: their mean is right.
    const bool mean = options.aggregate == Collect::mean && !options.neighbors;
    const bool shows = options.normalize == Normalize::inputs || mean;
    for (float value : fixture.result()) CHECK_EQUAL(value == value, !shows);
  }
}

TEST_ONCE("CUDA centroid attention: bfloat16 operands and storage") {
  for (const char* name : {"prime", "width-64-130", "ragged", "tile-129"}) {
    for (const CentroidOptions& options : all_centroid_options()) {
      if (options.aggregate == Collect::mean) continue;
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      const AttentionShape& shape = fixture.inputs.shape;
      round_in_place({{fixture.query, fixture.sequences() * shape.query_length * shape.head_dim},
                      {fixture.key, fixture.sequences() * shape.key_length * shape.head_dim},
                      {fixture.value, fixture.sequences() * shape.key_length * shape.value_dim}});
      if (options.weights) round_in_place({{fixture.weights, shape.batch * shape.key_length}});
      const auto expected = reference::centroid_attention(fixture.problem);
      CHECK_EQUAL(describe(run_there(fixture, nullptr, Precision::bfloat16)), "ok");
      CHECK_CLOSE(fixture.result(), expected.output, kRoundedBound);
      CHECK_CLOSE(fixture.masses(), expected.masses, kRoundedBound);
      for (Precision precision : {Precision::float32, Precision::bfloat16}) {
        fixture.arrays.poison();
        Device device(cuda::Storage::bfloat16);
        const CentroidAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
        CHECK_EQUAL(
            describe(device.run(Device::backend().operations.centroid_attention, there, precision)),
            "ok");
        device.fetch(fixture.arrays);
        CHECK_CLOSE(fixture.result(), expected.output, kRoundedBound);
      }
    }
  }
}

TEST_ONCE("CUDA centroid attention: failed allocations and cancellation") {
  for (const CentroidOptions& options : all_centroid_options()) {
    if (options.aggregate == Collect::sum || !options.weights) continue;
    const Scope scope(options.name());
    CentroidArrays fixture(find_case("prime"), options);
    const auto map = [&](const CentroidAttentionProblem& problem, Device& device) {
      return on_device(problem, device, fixture.arrays);
    };
    const auto operation = Device::backend().operations.centroid_attention;
    check_cancelled_on(fixture.problem, fixture.arrays, operation, map);
    check_allocation_failures_on(fixture.problem, fixture.arrays, operation, map);
  }
}

TEST_ONCE("CUDA centroid attention: at most four launches without labels and objective") {
  for (const char* name : {"prime", "usual"}) {  // up to 64 centroids, and more
    for (const CentroidOptions& options : all_centroid_options()) {
      const Scope scope(name + options.name());
      CentroidArrays fixture(find_case(name), options);
      fixture.problem.labels = nullptr;
      fixture.problem.objective = nullptr;
      Device device;
      const CentroidAttentionProblem there = on_device(fixture.problem, device, fixture.arrays);
      CHECK(count_launches(device, Device::backend().operations.centroid_attention, there) <= 4);
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
