#include "cuda/errors.h"
#include "cuda/query_groups.h"
#include "cuda/session.h"
#include "native/kernels/query_groups.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/cases.h"
#include "test/native/clustered_arrays.h"

namespace cluster_attention::test {

namespace {

/// The groups of all sequences; `order` only as far as it is defined.
struct Groups {
  std::vector<int32_t> labels, offsets, order, active, active_count;
  std::vector<float> means;

  /// get(pointer, count) is a copy of an array.
  template <typename Source, typename Get>
  Groups(const Source& source, const ClusteredAttentionProblem& problem, Get get) {
    const AttentionShape& shape = problem.inputs.shape;
    const int64_t sequences = shape.batch * shape.heads;
    const int64_t clusters = problem.clusters;
    labels = get(source.labels, sequences * shape.query_length);
    offsets = get(source.offsets, sequences * (clusters + 1));
    order = get(source.order, sequences * shape.query_length);
    active = get(source.active, sequences * clusters);
    active_count = get(source.active_count, sequences);
    means = get(source.means, sequences * clusters * shape.head_dim);
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t members = offsets[s * (clusters + 1) + clusters];
      std::fill(order.begin() + s * shape.query_length + members,
                order.begin() + (s + 1) * shape.query_length, -7);
      std::fill(active.begin() + s * clusters + active_count[s],
                active.begin() + (s + 1) * clusters, -7);
    }
  }
};

Groups groups_on_device(const ClusteredAttentionProblem& problem, ClusteredFixture& fixture,
                        const DeviceSettings& settings) {
  Device device(settings.storage, settings.device);
  const cuda::DeviceScope current(settings.device);
  Arrays& arrays = fixture.arrays;
  ClusteredAttentionProblem there = problem;
  there.inputs = device.inputs(problem.inputs, arrays);
  there.planes = device.at(problem.planes, arrays);
  there.given_labels = device.at(problem.given_labels, arrays);
  cuda::Call call;
  call.storage = settings.storage;
  call.precision = settings.precision;
  cuda::QueryGroups groups;
  cuda::DeviceWorkspace::Scope scope(device.session()->workspace());
  CHECK_EQUAL(describe(cuda::group_queries(*device.session(), there, call, scope, groups)), "ok");
  bool non_finite = true;
  CHECK_EQUAL(describe(device.backend().finish(device.session(), &non_finite)), "ok");
  CHECK(!non_finite);
  return Groups(groups, problem, [&](const auto* data, int64_t count) {
    std::vector<std::decay_t<decltype(*data)>> values(static_cast<size_t>(count));
    CHECK_EQUAL(describe(device.backend().download_bytes(
                    device.session(), values.data(), data,
                    count * static_cast<int64_t>(sizeof(*data)), nullptr)),
                "ok");
    return values;
  });
}

void check_groups(ClusteredFixture& fixture, DeviceSettings settings = {}) {
  const ClusteredAttentionProblem& problem = fixture.problem;
  Context context(2);
  kernels::QueryGroups on_cpu;
  CHECK_EQUAL(describe(kernels::group_queries(problem, context, on_cpu)), "ok");
  const Range all{0, problem.inputs.shape.batch * problem.inputs.shape.heads};
  CHECK_EQUAL(describe(kernels::average_queries(problem, on_cpu, all, context)), "ok");
  const Groups expected(on_cpu, problem, [](const auto* data, int64_t count) {
    return std::vector<std::decay_t<decltype(*data)>>(data, data + count);
  });
  on_every_kind_of_device([&](int32_t device) {
    settings.device = device;
    in_every_thread_order([&] {
      const Groups actual = groups_on_device(problem, fixture, settings);
      CHECK_SAME(actual.labels, expected.labels);
      CHECK_SAME(actual.offsets, expected.offsets);
      CHECK_SAME(actual.order, expected.order);
      CHECK_SAME(actual.active, expected.active);
      CHECK_SAME(actual.active_count, expected.active_count);
      CHECK_SAME(actual.means, expected.means);
    });
  });
}

TEST_ONCE("CUDA query groups: the CPU's groups and means, however they are made") {
  for (const Case& one : cases()) {
    for (Grouping grouping : {Grouping::hamming, Grouping::euclidean, Grouping::given}) {
      const Scope scope(one.name + " grouping " + std::to_string(static_cast<int>(grouping)));
      ClusteredFixture fixture(one, grouping, -1, comparable_fill());
      fixture.problem.iterations = 4;
      check_groups(fixture);
    }
  }
}

TEST_ONCE("CUDA query groups: thresholds of the data, and ties everywhere") {
  for (const char* name : {"prime", "ragged", "tile-129"}) {
    for (Grouping grouping : {Grouping::hamming, Grouping::euclidean}) {
      const Scope scope(name);
      ClusteredFixture fixture(find_case(name), grouping, -1, Fill::integer);
      fixture.problem.threshold = Threshold::data;
      check_groups(fixture);
    }
  }
}

TEST_ONCE("CUDA query groups: rows stored as bfloat16") {
  for (Grouping grouping : {Grouping::hamming, Grouping::euclidean}) {
    ClusteredFixture fixture(find_case("prime"), grouping, -1, Fill::integer);
    check_groups(fixture, {cuda::Storage::bfloat16, Precision::float32});
  }
}

TEST_ONCE("CUDA query groups: the first given label that is out of range is named") {
  ClusteredFixture fixture(find_case("ragged"), Grouping::given);
  const int64_t length = fixture.problem.inputs.shape.query_length;
  fixture.given_labels[0] = -1;
  fixture.given_labels[3] = static_cast<int32_t>(fixture.problem.clusters);
  fixture.given_labels[length + 1] = -2;
  Device device;
  ClusteredAttentionProblem there = fixture.problem;
  there.inputs = device.inputs(there.inputs, fixture.arrays);
  there.given_labels = device.at(there.given_labels, fixture.arrays);
  cuda::QueryGroups groups;
  cuda::DeviceWorkspace::Scope scope(device.session()->workspace());
  CHECK_EQUAL(describe(cuda::group_queries(*device.session(), there, {}, scope, groups)), "ok");
  bool non_finite = false;
  CHECK_EQUAL(describe(device.backend().finish(device.session(), &non_finite)),
              "out_of_range labels[3]");
}

}  // namespace

}  // namespace cluster_attention::test
