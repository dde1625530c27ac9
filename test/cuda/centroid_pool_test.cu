#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "native/reference/centroid_pool.h"
#include "test/cuda/launches.h"
#include "test/cuda/promises.h"
#include "test/native/compare.h"
#include "test/native/pool_arrays.h"

namespace cluster_attention::test {

namespace {

/// float32 products are made of three bfloat16 ones, in every step.
constexpr double kBound = 5e-5;

CentroidPoolProblem on_device(CentroidPoolProblem problem, Device& device, const Arrays& arrays) {
  problem.inputs = device.stored(problem.inputs, arrays);
  problem.initial = device.at(problem.initial, arrays);
  problem.lengths = device.at(problem.lengths, arrays);
  problem.output = device.stored(problem.output, arrays);
  problem.labels = device.at(problem.labels, arrays);
  problem.masses = device.at(problem.masses, arrays);
  return problem;
}

/// Runs on the device with fresh outputs, which are brought back.
Status run_there(PoolArrays& fixture, bool* non_finite = nullptr,
                 Precision precision = Precision::float32,
                 cuda::Storage storage = cuda::Storage::float32, int32_t index = -1) {
  fixture.arrays.poison();
  Device device(storage, index);
  const CentroidPoolProblem there = on_device(fixture.problem, device, fixture.arrays);
  const Status status = device.run(Device::backend().operations.centroid_pool, there, precision);
  if (non_finite != nullptr) *non_finite = device.non_finite();
  if (status.ok()) device.fetch(fixture.arrays);
  return status;
}

/// Labels are the most similar of the centroids returned, up to rounding; -1 for padding.
void check_labels(const PoolArrays& fixture, double rounding) {
  const CentroidPoolProblem& problem = fixture.problem;
  const std::vector<int32_t> labels = fixture.labels();
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t real = real_length(problem.lengths, b, problem.length);
    const int64_t centroids = std::min(problem.centroids, real);
    const auto a = reference::pool_assignment(
        reference::read_dense(problem.output + b * problem.centroids * problem.dim, centroids,
                              problem.dim),
        reference::read_dense(problem.inputs + b * problem.length * problem.dim, real, problem.dim),
        problem.similarity, problem.temperature > 0.0f ? problem.temperature : 1.0);
    for (int64_t i = 0; i < problem.length; ++i) {
      const int32_t label = labels[b * problem.length + i];
      if (i >= real || label < 0 || label >= centroids) {
        CHECK_EQUAL(label, i >= real ? -1 : 0);
        continue;
      }
      for (int64_t j = 0; j < centroids; ++j) CHECK(a(label, i) >= a(j, i) - rounding);
    }
  }
}

void check_reference(PoolArrays& fixture, double bound = kBound) {
  bool non_finite = true;
  CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
  CHECK(!non_finite);
  fixture.arrays.snapshot();
  const reference::CentroidPoolResult expected = reference::centroid_pool(fixture.problem);
  CHECK_CLOSE(fixture.result(), expected.output, bound);
  CHECK_CLOSE(fixture.masses(), expected.masses, bound);
  check_labels(fixture, 1e-4);
}

TEST_ONCE("CUDA centroid pool: matches the reference") {
  for (const Case& one : cases()) {
    if (one.query_length > 1000) continue;
    for (Similarity similarity : kSimilarities) {
      for (PoolStart start : kPoolStarts) {
        if (one.key_length > 1000 && similarity != Similarity::cosine) continue;
        const Scope scope(one.name + pool_options_name(similarity, start));
        PoolArrays fixture(one, similarity, start);
        check_reference(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA centroid pool: several tiles of centroids, wide rows, a sample") {
  const int64_t sizes[][3] = {{300, 70, 65}, {130, 129, 16}, {700, 64, 130}};
  for (const auto& size : sizes) {
    Case one = find_case("usual");
    one.batch = 1;
    one.key_length = size[0];
    one.clusters = size[1];
    one.head_dim = size[2];
    const Scope scope(std::to_string(size[0]) + " inputs");
    for (Similarity similarity : kSimilarities) {
      PoolArrays fixture(one, similarity, PoolStart::sample);
      check_reference(fixture);
      if (similarity == Similarity::cosine) continue;
      // Hard: the scores of small integers are exact, so that the first step has one right answer.
      PoolArrays hard(one, similarity, PoolStart::sample,
                      random_floats(one.key_length * one.head_dim, 3, Fill::integer));
      hard.problem.temperature = 0.0f;
      hard.problem.iterations = 1;
      CHECK_EQUAL(describe(run_there(hard)), "ok");
      CHECK_CLOSE(hard.result(), reference::centroid_pool(hard.problem).output, kBound);
      check_labels(hard, 1e-4);
    }
  }
}

TEST_ONCE("CUDA centroid pool: hard assignment finds planted clusters") {
  const Case& which = find_case("prime");
  const std::vector<float> planted =
      planted_clusters(which.batch * which.key_length, which.head_dim, which.clusters, 5);
  for (Similarity similarity : {Similarity::cosine, Similarity::euclidean}) {
    for (PoolStart start : {PoolStart::plus_plus, PoolStart::farthest}) {
      const Scope scope(pool_options_name(similarity, start));
      PoolArrays fixture(which, similarity, start, planted);
      fixture.problem.iterations = 8;
      fixture.problem.temperature = 0.0f;
      check_reference(fixture);
    }
  }
}

TEST_ONCE("CUDA centroid pool: starts and hard labels equal the CPU's, ties included") {
  for (const char* name : {"prime", "ragged", "usual", "long-keys"}) {
    for (Similarity similarity : {Similarity::dot, Similarity::euclidean}) {
      for (PoolStart start : kPoolStarts) {
        const Scope scope(name + pool_options_name(similarity, start));
        const Case& which = find_case(name);
        PoolArrays fixture(which, similarity, start);
        // Small integers: scores are exact, and many are equal.
        const auto values =
            random_floats(which.batch * which.key_length * which.head_dim, 3, Fill::integer);
        std::copy(values.begin(), values.end(), fixture.inputs);
        const auto given =
            random_floats(which.batch * which.clusters * which.head_dim, 4, Fill::integer);
        std::copy(given.begin(), given.end(), fixture.initial);
        fixture.problem.temperature = 0.0f;
        fixture.problem.iterations = 0;
        CHECK_RUNS(fixture.problem, fixture.arrays);
        const std::vector<float> output = fixture.result();
        const std::vector<int32_t> labels = fixture.labels();
        const std::vector<float> masses = fixture.masses();
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        CHECK_SAME(fixture.result(), output);
        if (start == PoolStart::stride) continue;  // means are no short fractions
        CHECK_SAME(fixture.labels(), labels);
        CHECK_SAME(fixture.masses(), masses);
      }
    }
  }
}

TEST_ONCE("CUDA centroid pool: rows chosen by distance equal the CPU's on Gaussian data") {
  for (Similarity similarity : {Similarity::cosine, Similarity::euclidean}) {
    for (PoolStart start : {PoolStart::plus_plus, PoolStart::farthest}) {
      const Scope scope(pool_options_name(similarity, start));
      PoolArrays fixture(find_case("long-keys"), similarity, start);
      fixture.problem.iterations = 0;
      CHECK_RUNS(fixture.problem, fixture.arrays);
      const std::vector<float> output = fixture.result();
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      CHECK_SAME(fixture.result(), output);
    }
  }
}

TEST_ONCE("CUDA centroid pool: equal inputs and ties go to the lowest centroid") {
  for (Similarity similarity : kSimilarities) {
    for (PoolStart start : kPoolStarts) {
      const Scope scope(pool_options_name(similarity, start));
      const Case& which = find_case("tile-49");
      PoolArrays fixture(which, similarity, start,
                         std::vector<float>(which.batch * which.key_length * which.head_dim, 0.5f));
      std::fill_n(fixture.initial, which.batch * which.clusters * which.head_dim, 0.5f);
      fixture.problem.temperature = 0.0f;
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      CHECK_SAME(fixture.labels(), std::vector<int32_t>(which.batch * which.key_length, 0));
      for (float value : fixture.result()) CHECK_EQUAL(value, 0.5f);
    }
  }
}

TEST_ONCE("CUDA centroid pool: rows of zeros, and centroids without mass") {
  PoolArrays zeros(find_case("prime"), Similarity::cosine, PoolStart::given);
  std::fill_n(zeros.inputs, 3 * 17, 0.0f);
  std::fill_n(zeros.initial + 17, 17, 0.0f);
  check_reference(zeros);
  PoolArrays fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
  fixture.problem.temperature = 0.0f;
  std::fill_n(fixture.initial + 2 * 17, 17, 1e4f);
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  for (int64_t d = 0; d < 17; ++d) CHECK_EQUAL(fixture.problem.output[2 * 17 + d], 1e4f);
  CHECK_EQUAL(fixture.problem.masses[2], 0.0f);
}

TEST_ONCE("CUDA centroid pool: the same bits in every order of the threads, alone and in a batch") {
  for (PoolStart start : kPoolStarts) {
    for (float temperature : {0.0f, 0.3f}) {
      const Scope scope(pool_options_name(Similarity::cosine, start));
      PoolArrays fixture(find_case("ragged"), Similarity::cosine, start);
      fixture.problem.temperature = temperature;
      CHECK_EQUAL(describe(run_there(fixture)), "ok");
      const auto expected = fixture.arrays.snapshot();
      in_every_thread_order([&] {
        CHECK_EQUAL(describe(run_there(fixture)), "ok");
        check_same_bytes(fixture.arrays.snapshot(), expected, "the order of the threads");
      });
      fixture.arrays.poison();
      Device device;
      const CentroidPoolProblem there = on_device(fixture.problem, device, fixture.arrays);
      for (int64_t b = 0; b < fixture.problem.batch; ++b) {
        CHECK_EQUAL(describe(device.run(Device::backend().operations.centroid_pool,
                                        one_pool_sequence(there, b))),
                    "ok");
      }
      device.fetch(fixture.arrays);
      check_same_bytes(fixture.arrays.snapshot(), expected, "running sequences one by one");
    }
  }
}

TEST_ONCE("CUDA centroid pool: optional outputs, NaN, bfloat16") {
  PoolArrays fixture(find_case("ragged"), Similarity::cosine, PoolStart::stride);
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  const std::vector<float> expected = fixture.result();
  fixture.problem.labels = nullptr;
  fixture.problem.masses = nullptr;
  CHECK_EQUAL(describe(run_there(fixture)), "ok");
  CHECK_SAME(fixture.result(), expected);
  for (Similarity similarity : kSimilarities) {
    for (float temperature : {0.0f, 0.5f}) {
      PoolArrays broken(find_case("prime"), similarity, PoolStart::given);
      broken.problem.temperature = temperature;
      for (float* place : {broken.inputs + 17 * 53 + 3, broken.initial + 17 * 9 + 3}) {
        const float saved = *place;
        *place = std::numeric_limits<float>::quiet_NaN();
        bool non_finite = false;
        CHECK_EQUAL(describe(run_there(broken, &non_finite)), "ok");
        CHECK(non_finite);
        *place = saved;
      }
    }
    PoolArrays rounded(find_case("prime"), similarity, PoolStart::farthest);
    round_in_place({{rounded.inputs, 2 * 53 * 17}});
    CHECK_EQUAL(describe(run_there(rounded)), "ok");
    const std::vector<float> exact = rounded.result();
    for (const DeviceSettings& settings : kBfloat16Settings) {
      CHECK_EQUAL(describe(run_there(rounded, nullptr, settings.precision, settings.storage)),
                  "ok");
      const double bound = settings.storage == cuda::Storage::float32 ? 0.0 : 0x1p-8;
      CHECK_CLOSE(rounded.result(), std::vector<double>(exact.begin(), exact.end()), bound);
    }
  }
}

TEST_ONCE("CUDA centroid pool: small integers that are equally far go to the lowest centroid") {
  for (Similarity similarity : {Similarity::dot, Similarity::euclidean}) {
    for (int64_t centroids : {5, 37, 73}) {
      const Scope scope(std::to_string(centroids) + " centroids");
      PoolArrays tied = tied_pool(similarity, centroids);
      CHECK_EQUAL(describe(run_there(tied)), "ok");
      CHECK_SAME(tied.labels(), reference::centroid_pool(tied.problem).labels);
    }
  }
}

TEST_ONCE(
    "CUDA centroid pool: in hard assignments a centroid that is NaN leaves the others alone") {
  for (Similarity similarity : kSimilarities) {
    PoolArrays planted = planted_pool(similarity);
    for (float* element : spoiled_centroids(planted)) {
      const float saved = std::exchange(*element, std::numeric_limits<float>::quiet_NaN());
      bool non_finite = false;
      CHECK_EQUAL(describe(run_there(planted, &non_finite)), "ok");
      CHECK(non_finite);
      const reference::CentroidPoolResult expected = reference::centroid_pool(planted.problem);
      CHECK_CLOSE(planted.result(), expected.output, kBound);
      CHECK_CLOSE(planted.masses(), expected.masses, kBound);
      CHECK_SAME(planted.labels(), expected.labels);
      *element = saved;
    }
  }
}

TEST_ONCE("CUDA centroid pool: a centroid whose square leaves the range of float32 is noticed") {
  PoolArrays fixture(find_case("prime"), Similarity::euclidean, PoolStart::given);
  fixture.problem.temperature = 0.0f;
  fixture.problem.iterations = 0;
  std::fill_n(fixture.initial + fixture.problem.dim, fixture.problem.dim, 1e20f);
  bool non_finite = false;
  CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
  CHECK(non_finite);
}

/// Rows a and -a, of which a^2 is a float32 and (2 a)^2 is not.
TEST_ONCE("CUDA centroid pool: distances that leave the range of float32 choose no row silently") {
  for (PoolStart start : {PoolStart::farthest, PoolStart::plus_plus}) {
    for (float a : {1.0f, 1.2e19f}) {
      PoolArrays fixture(find_case("prime"), Similarity::dot, start);
      fixture.problem.iterations = 0;
      fixture.problem.labels = nullptr;
      fixture.problem.masses = nullptr;
      for (int64_t i = 0; i < 2 * 53; ++i) {
        std::fill_n(fixture.inputs + 17 * i, 17, 0.0f);
        fixture.inputs[17 * i] = i % 2 == 0 ? a : -a;
      }
      bool non_finite = false;
      CHECK_EQUAL(describe(run_there(fixture, &non_finite)), "ok");
      CHECK_EQUAL(non_finite, a > 1.0f);
    }
  }
}

TEST_ONCE("CUDA centroid pool: failed allocations and cancellation") {
  PoolArrays fixture(find_case("prime"), Similarity::cosine, PoolStart::farthest);
  const auto map = [&](const CentroidPoolProblem& problem, Device& device) {
    return on_device(problem, device, fixture.arrays);
  };
  const auto operation = Device::backend().operations.centroid_pool;
  check_cancelled_on(fixture.problem, fixture.arrays, operation, map);
  check_allocation_failures_on(fixture.problem, fixture.arrays, operation, map);
}

TEST_ONCE("CUDA pool: more chunks of rows to choose from than blocks run at once") {
  Case which = find_case("prime");
  which.batch = 5;
  which.heads = 1;
  which.key_length = 1030;
  which.key_lengths = {1030, 0, 1, 1025, 1029};
  for (PoolStart start : {PoolStart::plus_plus, PoolStart::farthest}) {
    const Scope scope(pool_options_name(Similarity::euclidean, start));
    PoolArrays fixture(which, Similarity::euclidean, start);
    fixture.problem.iterations = 0;  // the rows that are chosen, as they are
    CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "ok");
    const std::vector<float> expected = fixture.result();
    CHECK_EQUAL(describe(run_there(fixture)), "ok");
    CHECK_SAME(fixture.result(), expected);
  }
}

/// The rows that are chosen, as they are; of bfloat16 numbers, so that no storage changes them.
void check_chosen_rows(PoolArrays& fixture) {
  const CentroidPoolProblem& problem = fixture.problem;
  fixture.problem.iterations = 0;
  round_in_place({{fixture.inputs, problem.batch * problem.length * problem.dim}});
  CHECK_EQUAL(describe(run_fresh(problem, fixture.arrays)), "ok");
  const std::vector<float> expected = fixture.result();
  const auto check = [&](Precision precision, cuda::Storage storage, int32_t device) {
    CHECK_EQUAL(describe(run_there(fixture, nullptr, precision, storage, device)), "ok");
    CHECK_SAME(fixture.result(), expected);
  };
  on_every_kind_of_device([&](int32_t index) {
    check(Precision::float32, cuda::Storage::float32, index);
    check(Precision::float32, cuda::Storage::bfloat16, index);
  });
  on_small_devices([&] {
    check(Precision::bfloat16, cuda::Storage::float32, -1);
    check(Precision::bfloat16, cuda::Storage::bfloat16, -1);
  });
}

TEST_ONCE("CUDA pool: rows of any width to choose from, in one to three buffers") {
  Case which = find_case("prime");
  which.batch = 3;
  which.heads = 1;
  which.clusters = 6;
  which.key_length = 300;
  which.key_lengths = {300, 0, 258};
  for (int64_t dim : {17, 72, 1100}) {
    which.head_dim = dim;
    for (PoolStart start : {PoolStart::plus_plus, PoolStart::farthest}) {
      for (Similarity similarity : {Similarity::euclidean, Similarity::cosine}) {
        const Scope scope(std::to_string(dim) + " " + pool_options_name(similarity, start));
        PoolArrays fixture(which, similarity, start);
        check_chosen_rows(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA pool: 256 rows of k-means++ and farthest points take a launch") {
  Case which = find_case("prime-long");
  which.head_dim = 3;
  for (Similarity similarity : kSimilarities) {
    for (int64_t centroids : {40, 258}) {
      which.clusters = centroids;
      int64_t without = 0;
      for (PoolStart start : {PoolStart::stride, PoolStart::plus_plus, PoolStart::farthest}) {
        const Scope scope(pool_options_name(similarity, start));
        PoolArrays fixture(which, similarity, start);
        fixture.problem.iterations = 0;  // the rows that are chosen, as they are
        CHECK_EQUAL(describe(run_fresh(fixture.problem, fixture.arrays)), "ok");
        const std::vector<float> expected = fixture.result();
        fixture.arrays.poison();
        Device device;
        const CentroidPoolProblem there = on_device(fixture.problem, device, fixture.arrays);
        const int64_t count =
            count_launches(device, Device::backend().operations.centroid_pool, there);
        device.fetch(fixture.arrays);
        CHECK_SAME(fixture.result(), expected);
        if (start == PoolStart::stride) {
          without = count;
          continue;
        }
        // The lengths of the rows take another one.
        const int64_t scales = similarity == Similarity::cosine ? 1 : 0;
        CHECK_EQUAL(count, without + scales + (centroids > 257 ? 2 : 1));
      }
    }
  }
}

}  // namespace

}  // namespace cluster_attention::test
