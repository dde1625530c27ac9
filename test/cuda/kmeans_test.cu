#include "test/cuda/launches.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"

namespace cluster_attention::test {

namespace {

auto on_device(KMeansFixture& fixture) {
  return [&](KMeansProblem problem, Device& device) {
    Arrays& arrays = fixture.arrays;
    problem.inputs = device.stored(problem.inputs, arrays);
    problem.initial = device.at(problem.initial, arrays);
    problem.lengths = device.at(problem.lengths, arrays);
    problem.centroids = device.at(problem.centroids, arrays);
    problem.labels = device.at(problem.labels, arrays);
    problem.counts = device.at(problem.counts, arrays);
    problem.inertia = device.at(problem.inertia, arrays);
    problem.iterations = device.at(problem.iterations, arrays);
    return problem;
  };
}

const cuda::Operation<KMeansProblem> kKMeans = Device::backend().operations.kmeans;

void check(KMeansFixture& fixture, const DeviceSettings& settings = {}) {
  check_same_as_cpu(fixture.problem, fixture.arrays, kKMeans, on_device(fixture), settings);
}

/// Everything has the CPU's bits: labels, counts, iterations, centroids, and the inertia.
TEST_ONCE("CUDA k-means: the CPU's bits from every start, under both metrics") {
  int64_t turn = 0;  // the starts take turns, which keeps the model's time short
  for (const Case& one : cases()) {
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      const auto start = static_cast<KMeansStart>(turn++ % 3);
      const Scope scope(one.name + " metric " + std::to_string(static_cast<int>(metric)) +
                        " start " + std::to_string(static_cast<int>(start)));
      KMeansFixture fixture(one, comparable_fill());
      fixture.problem.metric = metric;
      fixture.problem.start = start;
      fixture.problem.max_iterations = 4;
      fixture.problem.tolerance = start == KMeansStart::sample ? 0.0 : 1e-4;
      check(fixture);
    }
  }
}

TEST_ONCE("CUDA k-means: ties, equal points, empty clusters") {
  for (const char* name : {"prime", "ragged", "more-clusters-than-queries", "tile-129"}) {
    for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::given}) {
      for (int64_t iterations : {0, 1, 40}) {
        const Scope scope(name);
        KMeansFixture fixture(find_case(name), Fill::integer);
        fixture.problem.start = start;
        fixture.problem.max_iterations = iterations;
        check(fixture);
      }
    }
  }
  const Case& which = find_case("prime");
  const int64_t elements = which.batch * which.heads * which.query_length * which.head_dim;
  for (float value : {0.0f, 3.0f}) {
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      KMeansFixture fixture(which, std::vector<float>(static_cast<size_t>(elements), value));
      fixture.problem.metric = metric;
      check(fixture);
    }
  }
}

TEST_ONCE("CUDA k-means: under the cosine a mean of zero but for rounding keeps the centroid") {
  for (uint64_t seed = 1; seed < 20; ++seed) {
    KMeansFixture fixture = opposed_rows(seed);
    check(fixture);
  }
}

TEST_ONCE("CUDA k-means: iterations without end are not launched once all sequences have settled") {
  for (const char* name : {"prime", "ragged"}) {
    const Scope scope(name);
    KMeansFixture fixture(find_case(name), Fill::integer);
    fixture.problem.max_iterations = int64_t{1} << 53;
    check(fixture);
  }
}

TEST_ONCE("CUDA k-means: what an earlier call on the session has settled does not count") {
  KMeansFixture fixture(find_case("prime"), Fill::integer);
  fixture.problem.max_iterations = int64_t{1} << 53;
  CHECK_RUNS(fixture.problem, fixture.arrays);
  const auto expected = fixture.arrays.snapshot();
  fixture.arrays.poison();
  Device device;
  const KMeansProblem there = on_device(fixture)(fixture.problem, device);
  for (int i = 0; i < 3; ++i) {
    CHECK_EQUAL(describe(kKMeans(device.session(), there, cuda::Call())), "ok");
  }
  CHECK_EQUAL(describe(device.run(kKMeans, there)), "ok");
  device.fetch(fixture.arrays);
  check_same_bytes(fixture.arrays.snapshot(), expected, "a session that has computed before");
}

TEST_ONCE("CUDA k-means: rows whose sums do not fit in shared memory are refused before a launch") {
  Case which = find_case("prime");
  which.query_length = 5;
  which.head_dim = 15000;
  which.clusters = 2;
  KMeansFixture fixture(which, Fill::integer);
  Device device;
  const KMeansProblem there = on_device(fixture)(fixture.problem, device);
  CHECK_EQUAL(describe(device.run(kKMeans, there)), "unsupported dim");
  fixture.problem.max_iterations = 0;
  check(fixture);
}

TEST_ONCE("CUDA k-means: a tolerance ends the iterations where it ends the CPU's") {
  for (double tolerance : {1e-3, 0.1, 10.0}) {
    for (Metric metric : {Metric::euclidean, Metric::cosine}) {
      const Scope scope(std::to_string(tolerance));
      KMeansFixture fixture(find_case("usual"), comparable_fill());
      fixture.problem.tolerance = tolerance;
      fixture.problem.metric = metric;
      check(fixture);
    }
  }
}

/// More than one chunk of rows, part of a sort and tile of centroids.
TEST_ONCE("CUDA k-means: long sequences, many centroids") {
  Case which = find_case("prime-long");
  which.query_length = 2503;
  which.clusters = 131;
  which.head_dim = 5;
  for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::sample}) {
    KMeansFixture fixture(which, comparable_fill());
    fixture.problem.start = start;
    fixture.problem.max_iterations = 2;
    fixture.problem.tolerance = 1e-4;
    check(fixture);
  }
}

TEST_ONCE("CUDA k-means: bfloat16 rounds rows and, as a precision, starting centroids") {
  for (const DeviceSettings& settings : kBfloat16Settings) {
    for (KMeansStart start : {KMeansStart::plus_plus, KMeansStart::given}) {
      for (Metric metric : {Metric::euclidean, Metric::cosine}) {
        for (const char* name : {"prime", "ragged", "more-clusters-than-queries"}) {
          KMeansFixture fixture(find_case(name), comparable_fill());
          fixture.problem.metric = metric;
          fixture.problem.start = start;
          fixture.problem.max_iterations = 3;
          fixture.problem.tolerance = 1e-4;
          const KMeansProblem& problem = fixture.problem;
          if (settings.precision == Precision::float32) {
            round_in_place(
                {{fixture.inputs, problem.batch * problem.heads * problem.length * problem.dim}});
          }
          check(fixture, settings);
        }
      }
    }
  }
}

TEST_ONCE("CUDA k-means: NaN and Inf are noticed, and cancellation is heard") {
  KMeansFixture fixture(find_case("prime"), Fill::gaussian);
  fixture.problem.start = KMeansStart::given;
  fixture.problem.max_iterations = 2;
  const auto map = on_device(fixture);
  check_notices_non_finite(fixture.problem, fixture.arrays, kKMeans, map, fixture.inputs, 17 * 40);
  check_notices_non_finite(fixture.problem, fixture.arrays, kKMeans, map, fixture.initial, 20);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(device_status(fixture.problem, fixture.arrays, kKMeans, map, &abort), "cancelled");
}

/// Rows a and -a, of which a^2 is a float32 and (2 a)^2 is not.
TEST_ONCE("CUDA k-means: a centroid whose square leaves the range of float32 is noticed") {
  for (int64_t iterations : {0, 3}) {
    KMeansFixture fixture(find_case("prime"), Fill::integer);
    fixture.problem.start = KMeansStart::given;
    fixture.problem.max_iterations = iterations;
    std::fill_n(fixture.initial + fixture.problem.dim, fixture.problem.dim, 1e20f);
    Device device;
    CHECK_EQUAL(describe(device.run(kKMeans, on_device(fixture)(fixture.problem, device))), "ok");
    CHECK(device.non_finite());
  }
  // The mean of rows, none of which has to be squared.
  KMeansFixture moved(find_case("prime"), Fill::integer);
  moved.problem.start = KMeansStart::given;
  moved.problem.max_iterations = 3;
  std::fill_n(moved.inputs, moved.sequences() * moved.problem.length * moved.problem.dim, 1e19f);
  Device device;
  CHECK_EQUAL(describe(device.run(kKMeans, on_device(moved)(moved.problem, device))), "ok");
  CHECK(device.non_finite());
}

TEST_ONCE("CUDA k-means: distances that leave the range of float32 draw no row silently") {
  for (float a : {1.0f, 1.2e19f}) {
    KMeansFixture fixture(find_case("prime"), Fill::gaussian);
    fixture.problem.start = KMeansStart::plus_plus;
    fixture.problem.max_iterations = 0;
    const KMeansProblem& problem = fixture.problem;
    for (int64_t i = 0; i < problem.batch * problem.heads * problem.length; ++i) {
      float* row = fixture.inputs + i * problem.dim;
      std::fill_n(row, problem.dim, 0.0f);
      row[0] = i % 2 == 0 ? a : -a;
    }
    Device device;
    CHECK_EQUAL(describe(device.run(kKMeans, on_device(fixture)(problem, device))), "ok");
    CHECK_EQUAL(device.non_finite(), a > 1.0f);
  }
}

TEST_ONCE("CUDA k-means: more chunks of rows to draw from than blocks run at once") {
  Case which = find_case("prime");
  which.batch = 5;
  which.heads = 1;
  which.query_length = 1030;
  which.query_lengths = {1030, 0, 1, 1025, 1029};
  KMeansFixture fixture(which, comparable_fill());
  fixture.problem.start = KMeansStart::plus_plus;
  fixture.problem.max_iterations = 1;
  check(fixture);
}

TEST_ONCE("CUDA k-means: 256 draws of k-means++ take a launch") {
  for (int64_t clusters : {1, 257, 258}) {
    Case which = find_case("prime-long");
    which.head_dim = 3;
    which.clusters = clusters;
    int64_t launches[2];
    for (KMeansStart start : {KMeansStart::sample, KMeansStart::plus_plus}) {
      KMeansFixture fixture(which, comparable_fill());
      fixture.problem.start = start;
      fixture.problem.max_iterations = 1;
      Device device;
      const KMeansProblem there = on_device(fixture)(fixture.problem, device);
      launches[start == KMeansStart::plus_plus ? 1 : 0] = count_launches(device, kKMeans, there);
      if (start == KMeansStart::plus_plus) check(fixture);
    }
    CHECK_EQUAL(launches[1], launches[0] + (clusters > 257 ? 2 : clusters > 1 ? 1 : 0));
  }
}

}  // namespace

}  // namespace cluster_attention::test
