// The stable counting sort by itself, each of its ways, against std::stable_sort.

#include <algorithm>
#include <numeric>

#include "cuda/counting_sort.h"
#include "cuda/session.h"
#include "test/cuda/cluster_limits.h"
#include "test/cuda/device.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

struct SortFixture {
  Arrays arrays;
  cuda::SortProblem problem;
  const int32_t* lengths = nullptr;

  SortFixture(int64_t sequences, int64_t length, int64_t clusters,
              const std::vector<int32_t>& real = {}) {
    problem.sequences = sequences;
    problem.heads = real.empty() ? 1 : sequences / static_cast<int64_t>(real.size());
    problem.length = length;
    problem.clusters = clusters;
    // Few labels at one end, many at the other, and some rows in no cluster.
    std::vector<int32_t> labels = random_indices(sequences * length, -1, clusters, 5);
    for (size_t i = 0; i < labels.size(); i += 3) labels[i] = static_cast<int32_t>(i % 3);
    for (int32_t& label : labels) label = std::min(label, static_cast<int32_t>(clusters) - 1);
    problem.labels = arrays.input(labels);
    problem.lengths = arrays.optional(real);
    problem.clean = arrays.output<int32_t>(sequences * length);
    problem.offsets = arrays.output<int32_t>(sequences * (clusters + 1));
    problem.order = arrays.output<int32_t>(sequences * length);
    problem.active = arrays.output<int32_t>(sequences * clusters);
    problem.active_count = arrays.output<int32_t>(sequences);
  }

  /// What is past the members and the active clusters stays as it is.
  void expect() {
    arrays.poison();
    for (int64_t s = 0; s < problem.sequences; ++s) {
      const int64_t rows =
          problem.lengths == nullptr ? problem.length : problem.lengths[s / problem.heads];
      const int32_t* labels = problem.labels + s * problem.length;
      for (int64_t i = 0; i < problem.length; ++i) {
        problem.clean[s * problem.length + i] = i < rows ? labels[i] : -1;
      }
      std::vector<int32_t> order;
      for (int64_t i = 0; i < rows; ++i) {
        if (labels[i] >= 0) order.push_back(static_cast<int32_t>(i));
      }
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return labels[a] < labels[b]; });
      std::copy(order.begin(), order.end(), problem.order + s * problem.length);
      int32_t* offsets = problem.offsets + s * (problem.clusters + 1);
      problem.active_count[s] = 0;
      for (int64_t c = 0; c <= problem.clusters; ++c) {
        offsets[c] = static_cast<int32_t>(
            std::count_if(order.begin(), order.end(), [&](int32_t i) { return labels[i] < c; }));
        if (c > 0 && offsets[c] > offsets[c - 1]) {
          problem.active[s * problem.clusters + problem.active_count[s]++] =
              static_cast<int32_t>(c - 1);
        }
      }
    }
  }

  std::string sort(const cuda::SortPlan& plan) {
    arrays.poison();
    Device device;
    cuda::SortProblem there = problem;
    there.labels = device.at(problem.labels, arrays);
    there.lengths = device.at(problem.lengths, arrays);
    there.clean = device.at(problem.clean, arrays);
    there.offsets = device.at(problem.offsets, arrays);
    there.order = device.at(problem.order, arrays);
    there.active = device.at(problem.active, arrays);
    there.active_count = device.at(problem.active_count, arrays);
    CHECK_EQUAL(describe(cuda::sort_by_label(*device.session(), there, plan)), "ok");
    bool non_finite = true;
    const std::string result = describe(device.backend().finish(device.session(), &non_finite));
    device.fetch(arrays);
    return result;
  }

  /// In clusters of so many blocks.
  cuda::SortPlan plan(int64_t blocks) const {
    return cuda::plan_sort_clusters(problem.sequences, problem.length, problem.clusters,
                                    runnable(cluster_limits(132, 227 * 1024, blocks, blocks)));
  }
};

TEST_ONCE("CUDA counting sort: clusters of blocks and two launches sort alike") {
  const struct {
    int64_t sequences, length, clusters;
    std::vector<int32_t> real;
  } sizes[] = {{1, 1, 1, {}},      {3, 33, 5, {}},          {2, 1000, 700, {}},
               {2, 5003, 100, {}}, {4, 2100, 3, {2100, 7}}, {3, 300, 40, {300, 0, 299}},
               {1, 9000, 2000, {}}};
  for (const auto& size : sizes) {
    const Scope scope(std::to_string(size.length) + " rows, " + std::to_string(size.clusters));
    SortFixture fixture(size.sequences, size.length, size.clusters, size.real);
    fixture.expect();
    const auto expected = fixture.arrays.snapshot();
    std::vector<cuda::SortPlan> plans = {cuda::SortPlan()};
    for (int64_t blocks : runnable_blocks({1, 5, 8, 16})) {
      const cuda::SortPlan plan = fixture.plan(blocks);
      if (plan.parts > 0) plans.push_back(plan);
      CHECK(plan.parts > 0 || !has_all_of_hopper());
    }
    for (const cuda::SortPlan& plan : plans) {
      const Scope parts(std::to_string(plan.parts) + " parts");
      in_every_thread_order([&] {
        CHECK_EQUAL(fixture.sort(plan), "ok");
        check_same_bytes(fixture.arrays.snapshot(), expected, "the device");
      });
    }
  }
}

TEST_ONCE("CUDA counting sort: a label outside its range is named and in no cluster") {
  SortFixture fixture(2, 700, 9);
  auto* labels = const_cast<int32_t*>(fixture.problem.labels);
  labels[703] = labels[1399] = -1;
  fixture.expect();
  const auto expected = fixture.arrays.snapshot();
  labels[703] = 9;
  labels[1399] = -2;
  std::vector<cuda::SortPlan> plans = {cuda::SortPlan()};
  for (int64_t blocks : runnable_blocks({1, 8, 16})) plans.push_back(fixture.plan(blocks));
  for (const cuda::SortPlan& plan : plans) {
    const Scope scope(std::to_string(plan.parts) + " parts");
    CHECK_EQUAL(fixture.sort(plan), "out_of_range labels[703]");
    check_same_bytes(fixture.arrays.snapshot(), expected, "the device");
  }
}

TEST_ONCE("CUDA counting sort: how a call is cut") {
  const auto plan = [](int64_t sequences, int64_t length, int64_t clusters) {
    return cuda::plan_sort_clusters(sequences, length, clusters, kHopper);
  };
  CHECK_EQUAL(plan(8, 16384, 100).parts, 16);
  CHECK_EQUAL(plan(8, 16384, 100).run_rows, 64);
  CHECK_EQUAL(plan(8, 1024, 100).parts, 4);
  CHECK_EQUAL(plan(1000, 1024, 100).parts, 1);
  // Counts that do not fit on chip, runs that take longer than launches, and nothing at all.
  CHECK_EQUAL(plan(8, 16384, 100000).parts, 0);
  CHECK_EQUAL(plan(1, 1 << 20, 100).parts, 0);
  CHECK_EQUAL(plan(1, 0, 5).parts, 1);
}

}  // namespace

}  // namespace cluster_attention::test
