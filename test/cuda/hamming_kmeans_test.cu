#include "cuda/hamming_kmeans.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(HammingFixture& fixture) {
  return [&](HammingKMeansProblem problem, Device& device) {
    Arrays& arrays = fixture.arrays;
    problem.hashes = device.at(problem.hashes, arrays);
    problem.initial = device.at(problem.initial, arrays);
    problem.lengths = device.at(problem.lengths, arrays);
    problem.labels = device.at(problem.labels, arrays);
    problem.counts = device.at(problem.counts, arrays);
    problem.centroids = device.at(problem.centroids, arrays);
    problem.iterations = device.at(problem.iterations, arrays);
    return problem;
  };
}

const cuda::Operation<HammingKMeansProblem> kHammingKMeans =
    Device::backend().operations.hamming_kmeans;

void check(HammingFixture& fixture) {
  check_same_as_cpu(fixture.problem, fixture.arrays, kHammingKMeans, on_device(fixture));
}

TEST_ONCE("CUDA hamming k-means: the CPU's labels, counts, centroids and iterations") {
  for (const Case& one : cases()) {
    for (bool given_start : {false, true}) {
      for (int64_t iterations : {0, 1, 10}) {
        const Scope scope(one.name + (given_start ? " given start " : " drawn start ") +
                          std::to_string(iterations));
        HammingFixture fixture(one, given_start);
        fixture.problem.max_iterations = iterations;
        check(fixture);
      }
    }
  }
}

TEST_ONCE("CUDA hamming k-means: many equal hashes, clusters without members") {
  for (const char* name : {"prime", "tile-129", "usual"}) {
    for (uint64_t seed : {0, 1, 2}) {
      const Scope scope(name);
      HammingFixture fixture(find_case(name), false, 0);
      fixture.problem.seed = seed;
      check(fixture);
    }
  }
}

/// Sizes that take the launches of their own: long sequences, and counters that do not fit on chip.
TEST_ONCE("CUDA hamming k-means: sequences shared out over blocks") {
  const struct {
    int64_t length;
    int64_t clusters;
    int64_t iterations;
  } sizes[] = {{5003, 100, 10}, {5003, 100, 0}, {2500, 2100, 2}};
  for (const auto& size : sizes) {
    const Scope scope(std::to_string(size.length) + " hashes, " + std::to_string(size.clusters));
    Case which = find_case("prime-long");
    which.query_length = size.length;
    which.clusters = size.clusters;
    HammingFixture fixture(which, false, 12);
    fixture.problem.max_iterations = size.iterations;
    check(fixture);
  }
  Case ragged = find_case("prime-long");
  ragged.batch = 3;
  ragged.query_length = 3001;
  ragged.clusters = 128;
  ragged.query_lengths = {3001, 0, 40};
  HammingFixture fixture(ragged, true, 12);
  check(fixture);
}

TEST_ONCE("CUDA hamming k-means: how a call is cut") {
  const int64_t kibi = 1024;
  const cuda::HammingPlan small = cuda::plan_hamming_kmeans(8, 1024, 100, 132, 227 * kibi);
  CHECK(small.alone && small.shared_counters);
  CHECK_EQUAL(small.threads, 1024);
  const cuda::HammingPlan long_one = cuda::plan_hamming_kmeans(8, 65536, 100, 132, 227 * kibi);
  CHECK(!long_one.alone && long_one.shared_counters);
  CHECK_EQUAL(long_one.parts, 33);
  const cuda::HammingPlan many = cuda::plan_hamming_kmeans(512, 4096, 100, 132, 227 * kibi);
  CHECK(many.alone);
  const cuda::HammingPlan wide = cuda::plan_hamming_kmeans(1000, 4096, 4000, 132, 227 * kibi);
  CHECK(!wide.alone && !wide.shared_counters);
  // Half a counter has 16 bits.
  const cuda::HammingPlan huge = cuda::plan_hamming_kmeans(1000, 10000000, 10, 132, 227 * kibi);
  CHECK(!huge.alone);
  CHECK(10000000 / huge.parts <= 65535);
  const cuda::HammingPlan none = cuda::plan_hamming_kmeans(1, 0, 0, 132, 48 * kibi);
  CHECK(none.threads >= 32 && none.parts == 1);
}

TEST_ONCE("CUDA hamming k-means: cancellation is heard") {
  HammingFixture fixture(find_case("usual"), false);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(
      device_status(fixture.problem, fixture.arrays, kHammingKMeans, on_device(fixture), &abort),
      "cancelled");
}

}  // namespace

}  // namespace cluster_attention::test
