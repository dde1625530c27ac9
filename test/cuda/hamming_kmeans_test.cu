#include "cuda/hamming_kmeans.h"
#include "cuda/session.h"
#include "test/cuda/cluster_limits.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustering_arrays.h"
#include "test/native/compare.h"

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

using Way = cuda::HammingPlan::Way;

/// How the next call of planned() is cut; operations take no more than a problem.
cuda::HammingPlan next_plan;

/// The labels of a device sorted, in workspace memory.
struct Sorted {
  cuda::SortProblem problem;

  Sorted(cuda::DeviceWorkspace::Scope& scope, const HammingKMeansProblem& kmeans) {
    problem.sequences = kmeans.batch;
    problem.length = kmeans.length;
    problem.clusters = kmeans.clusters;
    problem.labels = kmeans.labels;
    problem.lengths = kmeans.lengths;
    CHECK(scope.allocate(&problem.offsets, kmeans.batch * (kmeans.clusters + 1)).ok());
    CHECK(scope.allocate(&problem.order, kmeans.batch * kmeans.length).ok());
    CHECK(scope.allocate(&problem.active, kmeans.batch * kmeans.clusters).ok());
    CHECK(scope.allocate(&problem.active_count, kmeans.batch).ok());
  }

  /// All of it as one list, as far as it is defined.
  std::vector<int32_t> read(cuda::Session* session) const {
    const auto get = [&](const int32_t* data, int64_t count) {
      std::vector<int32_t> values(static_cast<size_t>(count));
      CHECK(
          Device::backend().download_bytes(session, values.data(), data, count * 4, nullptr).ok());
      return values;
    };
    std::vector<int32_t> all;
    const auto add = [&](const std::vector<int32_t>& values) {
      all.insert(all.end(), values.begin(), values.end());
    };
    for (int64_t s = 0; s < problem.sequences; ++s) {
      add(get(problem.offsets + s * (problem.clusters + 1), problem.clusters + 1));
      add(get(problem.order + s * problem.length, all.back()));
      add(get(problem.active_count + s, 1));
      add(get(problem.active + s * problem.clusters, all.back()));
    }
    return all;
  }
};

/// The labels are sorted on the way, as by a sort of their own.
Status planned(cuda::Session* session, const HammingKMeansProblem& problem, const cuda::Call&) {
  cuda::DeviceWorkspace::Scope scope(session->workspace());
  const Sorted together(scope, problem);
  const Sorted alone(scope, problem);
  CA_RETURN_IF_ERROR(cuda::group_hashes(*session, problem, 1, next_plan, &together.problem));
  CA_RETURN_IF_ERROR(cuda::sort_by_label(*session, alone.problem, cuda::SortPlan()));
  CHECK_SAME(together.read(session), alone.read(session));
  return Status::success();
}

/// Cut in one way, for a device of `limits`; false where the sizes do not allow it.
bool check_planned(HammingFixture& fixture, cuda::HammingPlan::Way way,
                   const cuda::ClusterLimits& limits) {
  const HammingKMeansProblem& problem = fixture.problem;
  if (!cuda::plan_hamming_way(way, problem.batch, problem.length,
                              std::min(problem.clusters, problem.length), limits, next_plan)) {
    return false;
  }
  const Scope scope(std::to_string(next_plan.parts) + " parts of " +
                    std::to_string(next_plan.threads) + " threads");
  check_same_as_cpu(problem, fixture.arrays, planned, on_device(fixture));
  return true;
}

/// In one launch for a sequence, in each way that the device has; false where the sizes do not
/// allow it.
bool check_clusters(HammingFixture& fixture, const cuda::ClusterLimits& limits) {
  bool all = true;
  for (const cuda::ClusterLimits& each : with_and_without_warpgroups(runnable(limits))) {
    const Way way = each.warpgroup_hamming ? Way::warpgroups : Way::clusters;
    all = check_planned(fixture, way, each) && all;
  }
  return all;
}

TEST_ONCE("CUDA hamming k-means: every case in every way") {
  for (const Case& one : cases()) {
    const Scope scope(one.name);
    HammingFixture fixture(one, false);
    CHECK(check_planned(fixture, Way::launches, kHopper));
    CHECK(check_clusters(fixture, kHopper));
  }
}

/// What tensor cores count reaches its largest numbers, and equal centroids lie up to 128 clusters
/// apart; one pattern is there past the first 130 alone.
TEST_ONCE("CUDA hamming k-means: hashes of all bits and of none, ties far apart") {
  Case which = find_case("prime-long");
  which.batch = which.heads = 1;
  which.query_length = 150;
  which.clusters = 137;
  which.bits = 64;
  constexpr uint64_t kPatterns[] = {
      0,    0x00000000ffffffff, 0xffffffff00000000, 0x5555555555555555,
      1,    0x8000000000000000, 0x7fffffffffffffff, 0x0101010101010101,
      ~0ull};
  for (int64_t iterations : {0, 2}) {
    HammingFixture fixture(which, true);
    fixture.problem.max_iterations = iterations;
    auto* hashes = const_cast<uint64_t*>(fixture.problem.hashes);
    auto* initial = const_cast<uint64_t*>(fixture.problem.initial);
    for (int64_t i = 0; i < which.query_length; ++i) hashes[i] = kPatterns[i % 9];
    for (int64_t c = 0; c < which.clusters; ++c) initial[c] = kPatterns[c < 130 ? c % 8 : c % 9];
    CHECK(check_planned(fixture, Way::launches, kHopper));
    CHECK(check_clusters(fixture, kHopper));
  }
}

/// More iterations than could be launched: they end where nothing changes any more.
constexpr int64_t kEndless = int64_t{1} << 53;

/// Sizes that take the launches of their own: long sequences, and counters that do not fit on chip.
TEST_ONCE("CUDA hamming k-means: sequences shared out over launches and clusters of blocks") {
  const struct {
    int64_t length;
    int64_t clusters;
    int64_t iterations;
    bool clustered;
  } sizes[] = {{5003, 100, 10, true},   {5003, 100, 0, true}, {2500, 2100, 2, false},
               {1030, 300, 3, true},    {333, 8, 10, true},   {2048, 1, 2, true},
               {320, 9, kEndless, true}};
  for (const auto& size : sizes) {
    const Scope scope(std::to_string(size.length) + " hashes, " + std::to_string(size.clusters));
    Case which = find_case("prime-long");
    which.query_length = size.length;
    which.clusters = size.clusters;
    HammingFixture fixture(which, false, 12);
    fixture.problem.max_iterations = size.iterations;
    CHECK(check_planned(fixture, Way::launches, kHopper));
    for (int64_t blocks : runnable_blocks({1, 2, 7, 8, 16})) {
      const cuda::ClusterLimits limits = cluster_limits(132, 227 * 1024, blocks, blocks);
      const bool fits = check_clusters(fixture, limits);
      CHECK(fits == size.clustered || (!fits && !has_all_of_hopper()));
    }
  }
  Case ragged = find_case("prime-long");
  ragged.batch = 3;
  ragged.query_length = 3001;
  ragged.clusters = 128;
  ragged.query_lengths = {3001, 0, 40};
  HammingFixture fixture(ragged, true, 12);
  CHECK(check_planned(fixture, Way::launches, kHopper));
  CHECK(check_clusters(fixture, kHopper) || !has_all_of_hopper());
}

TEST_ONCE("CUDA hamming k-means: clusters of 16 that a device does not run") {
  Case which = find_case("prime-long");
  which.clusters = 40;
  for (int64_t length : {1999, 150'000}) {  // 8 blocks hold the first alone
    which.query_length = length;
    HammingFixture fixture(which, false, 12);
    fixture.problem.max_iterations = 2;
    with_few_clusters([&] {
      check_same_as_cpu(fixture.problem, fixture.arrays, kHammingKMeans, on_device(fixture));
    });
  }
}

/// A block that is slow to look must still see what it was sent for this iteration; and where there
/// are fewer clusters than blocks, some send no centroid that would prove that they have looked.
TEST_ONCE("CUDA hamming k-means: blocks that are ahead of others in many orders of threads") {
  Case which = find_case("prime-long");
  const struct { int64_t length, clusters; } sizes[] = {{67, 8}, {34, 2}};
  const int64_t parts = runnable_blocks({1, 8}).back();
  for (const auto& size : sizes) {
    which.query_length = size.length;
    which.clusters = size.clusters;
    HammingFixture fixture(which, false, 12);
    const HammingKMeansProblem& problem = fixture.problem;
    CHECK_EQUAL(describe(run_fresh(problem, fixture.arrays, 1, {})), "ok");
    const auto expected = fixture.arrays.snapshot();
    for (const cuda::ClusterLimits& limits : with_and_without_warpgroups(kHopper)) {
      const Way way = limits.warpgroup_hamming ? Way::warpgroups : Way::clusters;
      for (uint64_t seed = 1; seed <= 150; ++seed) {
        const Scope scope(std::to_string(size.clusters) + " clusters, way " +
                          std::to_string(static_cast<int>(way)) + ", thread order " +
                          std::to_string(seed));
        set_thread_order(seed);
        fixture.arrays.poison();
        Device device;
        next_plan = {way, true, parts, 128};
        CHECK_EQUAL(describe(device.run<HammingKMeansProblem>(planned,
                                                              on_device(fixture)(problem, device))),
                    "ok");
        device.fetch(fixture.arrays);
        check_same_bytes(fixture.arrays.snapshot(), expected, "the device");
      }
    }
  }
  set_thread_order(0);
}

TEST_ONCE("CUDA hamming k-means: how a call is cut") {
  const cuda::HammingPlan small = cuda::plan_hamming_kmeans(8, 1024, 100, kHopper);
  CHECK(small.way == Way::clusters);
  CHECK_EQUAL(small.parts, 7);
  CHECK_EQUAL(small.threads, 480);
  const cuda::HammingPlan longer = cuda::plan_hamming_kmeans(8, 65536, 100, kHopper);
  CHECK(longer.way == Way::clusters);
  CHECK_EQUAL(longer.parts, 16);
  CHECK_EQUAL(longer.threads, 1024);
  // Where seven clusters of 16 blocks run at once, or of 15, eight sequences take smaller ones.
  cuda::ClusterLimits uneven = kHopper;
  uneven.resident[15] = uneven.resident[14] = 7;
  CHECK_EQUAL(cuda::plan_hamming_kmeans(8, 65536, 100, uneven).parts, 14);
  CHECK_EQUAL(cuda::plan_hamming_kmeans(7, 65536, 100, uneven).parts, 16);
  CHECK_EQUAL(cuda::plan_hamming_kmeans(64, 4096, 100, kHopper).parts, 2);
  CHECK_EQUAL(cuda::plan_hamming_kmeans(512, 4096, 100, kHopper).parts, 1);
  // What does not fit in one block takes more.
  CHECK_EQUAL(cuda::plan_hamming_kmeans(512, 50000, 100, kHopper).parts, 3);
  const cuda::HammingPlan lonely = cuda::plan_hamming_kmeans(1, 200000, 100, kHopper);
  CHECK(lonely.way == Way::launches && lonely.shared_counters);
  CHECK_EQUAL(lonely.parts, 264);
  const cuda::HammingPlan wide = cuda::plan_hamming_kmeans(1000, 4096, 4000, kHopper);
  CHECK(wide.way == Way::launches && !wide.shared_counters);
  // Half a counter has 16 bits.
  const cuda::HammingPlan huge = cuda::plan_hamming_kmeans(1000, 10000000, 10, kHopper);
  CHECK(huge.way == Way::launches);
  CHECK(10000000 / huge.parts <= 65535);
  cuda::ClusterLimits warpgroups = kHopper;
  warpgroups.warpgroup_hamming = true;
  const cuda::HammingPlan by_warpgroups = cuda::plan_hamming_kmeans(8, 16384, 100, warpgroups);
  CHECK(by_warpgroups.way == Way::warpgroups);
  CHECK_EQUAL(by_warpgroups.threads, 512);
  CHECK_EQUAL(cuda::plan_hamming_kmeans(8, 100, 100, warpgroups).threads, 128);
  // Where the counts of all blocks do not fit, warps do.
  CHECK(cuda::plan_hamming_kmeans(8, 16384, 1000, warpgroups).way == Way::clusters);
  const cuda::HammingPlan none =
      cuda::plan_hamming_kmeans(1, 0, 0, cluster_limits(132, 48 * 1024, 1, 1));
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
