#include "cuda/counting_sort.h"
#include "cuda/group_cluster.h"
#include "cuda/operands.cuh"
#include "cuda/session.h"
#include "native/core/shape.h"
#include "test/cuda/cluster_limits.h"
#include "test/cuda/same_as_cpu.h"
#include "test/native/clustered_arrays.h"

namespace cluster_attention::test {

namespace {

/// Everything that grouping makes, in workspace memory, by one launch or by a launch per step.
struct Groups {
  cuda::HashSequences hashing;
  cuda::GroupProblem problem;
  cuda::KeysAndValues operands;
  cuda::PackParams packing;

  Groups(cuda::Session& session, cuda::DeviceWorkspace::Scope& scope,
         const ClusteredAttentionProblem& there, const cuda::Call& call) {
    const AttentionShape& shape = there.inputs.shape;
    const int64_t sequences = shape.batch * shape.heads;
    const int64_t queries = sequences * shape.query_length;
    const int64_t clusters = sequences * there.clusters;
    int32_t* labels = nullptr;
    CHECK(scope.allocate(&labels, queries).ok());
    cuda::SortProblem& sort = problem.sort;
    sort.sequences = sequences;
    sort.heads = shape.heads;
    sort.length = shape.query_length;
    sort.clusters = there.clusters;
    sort.labels = labels;
    sort.lengths = there.inputs.query_lengths;
    CHECK(scope.allocate(&sort.offsets, sequences * (there.clusters + 1)).ok());
    CHECK(scope.allocate(&sort.order, queries).ok());
    CHECK(scope.allocate(&sort.active, clusters).ok());
    CHECK(scope.allocate(&sort.active_count, sequences).ok());
    if (there.grouping == Grouping::given) {
      sort.labels = there.given_labels;
      sort.clean = labels;
    } else {
      prepare_hashes(scope, there, labels);
    }
    add_sums(scope, Reduce::mean, there.inputs.query, shape.head_dim);
    // Any other rows of as many queries: the queries again.
    add_sums(scope, Reduce::sum, there.inputs.query, shape.head_dim);
    CHECK(plan_operands(session, scope, there.inputs, call, &operands, &packing).ok());
    problem.packing = &packing;
  }

  void prepare_hashes(cuda::DeviceWorkspace::Scope& scope, const ClusteredAttentionProblem& there,
                      int32_t* labels) {
    const AttentionShape& shape = there.inputs.shape;
    const cuda::SortProblem& sort = problem.sort;
    hashing.inputs = there.inputs.query;
    hashing.batch = shape.batch;
    hashing.heads = shape.heads;
    hashing.length = shape.query_length;
    hashing.dim = shape.head_dim;
    hashing.lengths = sort.lengths;
    hashing.planes = there.planes;
    hashing.bits = there.bits;
    CHECK(scope.allocate(&hashing.hashes, sort.sequences * sort.length).ok());
    HammingKMeansProblem& kmeans = problem.kmeans;
    kmeans.batch = sort.sequences;
    kmeans.length = sort.length;
    kmeans.clusters = sort.clusters;
    kmeans.bits = there.bits;
    kmeans.max_iterations = there.iterations;
    kmeans.seed = 7;
    kmeans.hashes = hashing.hashes;
    kmeans.lengths = sort.lengths;
    kmeans.labels = labels;
    CHECK(scope.allocate(&kmeans.counts, sort.sequences * sort.clusters).ok());
    CHECK(scope.allocate(&kmeans.centroids, sort.sequences * sort.clusters).ok());
    problem.hashing = &hashing;
  }

  void add_sums(cuda::DeviceWorkspace::Scope& scope, Reduce reduce, const InputRows& rows,
                int64_t dim) {
    const cuda::SortProblem& sort = problem.sort;
    cuda::MemberSumsProblem& sums = problem.sums[problem.sum_count++];
    sums.reduce = reduce;
    sums.sequences = sort.sequences;
    sums.heads = sort.heads;
    sums.length = sort.length;
    sums.clusters = sort.clusters;
    sums.dim = dim;
    sums.inputs = rows;
    sums.offsets = sort.offsets;
    sums.order = sort.order;
    CHECK(scope.allocate(&sums.output, sort.sequences * sort.clusters * dim).ok());
  }

  Status run_steps(cuda::Session& session, const cuda::Call& call) {
    if (problem.hashing != nullptr) {
      CA_RETURN_IF_ERROR(cuda::hash_sequences(session, hashing, call));
      CA_RETURN_IF_ERROR(cuda::group_hashes(session, problem.kmeans, problem.sort.heads));
    }
    CA_RETURN_IF_ERROR(cuda::sort_by_label(session, problem.sort));
    for (int i = 0; i < problem.sum_count; ++i) {
      CA_RETURN_IF_ERROR(cuda::sum_members(session, problem.sums[i], call));
    }
    return cuda::pack(session, packing);
  }

  /// All of it as bytes, as far as it is defined.
  std::vector<unsigned char> read(cuda::Session* session) const {
    std::vector<unsigned char> all;
    const auto add = [&](const auto* data, int64_t count) {
      const int64_t bytes = count * static_cast<int64_t>(sizeof(*data));
      std::vector<unsigned char> values(static_cast<size_t>(bytes));
      CHECK(Device::backend().download_bytes(session, values.data(), data, bytes, nullptr).ok());
      all.insert(all.end(), values.begin(), values.end());
    };
    const auto number = [&](const int32_t* data) {
      int32_t value = 0;
      CHECK(Device::backend().download_bytes(session, &value, data, 4, nullptr).ok());
      return value;
    };
    const cuda::SortProblem& sort = problem.sort;
    add(sort.clean != nullptr ? sort.clean : sort.labels, sort.sequences * sort.length);
    add(sort.offsets, sort.sequences * (sort.clusters + 1));
    add(sort.active_count, sort.sequences);
    for (int64_t s = 0; s < sort.sequences; ++s) {
      add(sort.order + s * sort.length, number(sort.offsets + (s + 1) * (sort.clusters + 1) - 1));
      add(sort.active + s * sort.clusters, number(sort.active_count + s));
    }
    for (int i = 0; i < problem.sum_count; ++i) {
      add(problem.sums[i].output, sort.sequences * sort.clusters * problem.sums[i].dim);
    }
    for (int i = 0; i < packing.count; ++i) {
      const cuda::PackParams::Tensor& tensor = packing.tensors[i];
      const int64_t columns = int64_t{tensor.chunks} * 8;
      for (int64_t s = 0; s < packing.sequences; ++s) {
        const int64_t batch = s / packing.heads;
        const auto real = [&](const int32_t* lengths, int64_t otherwise) {
          return lengths != nullptr ? number(lengths + batch) : otherwise;
        };
        if (real(tensor.other_lengths, 1) == 0) continue;
        const int64_t elements = real(tensor.lengths, tensor.length) * columns;
        add(tensor.high + s * tensor.length * columns, elements);
        if (tensor.low != nullptr) add(tensor.low + s * tensor.length * columns, elements);
      }
    }
    return all;
  }
};

/// One launch and the single steps leave the same bytes, on a device that has clusters.
void check_with_limits(ClusteredFixture& fixture, const cuda::ClusterLimits& limits,
                       const DeviceSettings& settings, bool fits) {
  in_every_thread_order([&] {
    Device device(settings.storage);
    cuda::Session& session = *device.session();
    Arrays& arrays = fixture.arrays;
    ClusteredAttentionProblem there = fixture.problem;
    there.inputs = device.inputs(there.inputs, arrays);
    there.planes = device.at(there.planes, arrays);
    there.given_labels = device.at(there.given_labels, arrays);
    cuda::Call call;
    call.storage = settings.storage;
    call.precision = settings.precision;
    cuda::DeviceWorkspace::Scope scope(session.workspace());
    Groups at_once(session, scope, there, call);
    Groups in_steps(session, scope, there, call);
    bool done = false;
    CHECK_EQUAL(describe(cuda::group_at_once(session, at_once.problem, call, limits, &done)), "ok");
    CHECK_EQUAL(done, fits && has_clusters());
    if (!done) return;
    CHECK_EQUAL(describe(in_steps.run_steps(session, call)), "ok");
    bool non_finite = true;
    CHECK_EQUAL(describe(device.backend().finish(&session, &non_finite)), "ok");
    CHECK(!non_finite);
    CHECK_SAME(at_once.read(&session), in_steps.read(&session));
  });
}

void check_at_once(ClusteredFixture& fixture, const cuda::ClusterLimits& limits,
                   const DeviceSettings& settings, bool fits = true) {
  for (const cuda::ClusterLimits& each : with_and_without_warpgroups(limits)) {
    const Scope scope(each.warpgroup_hamming ? "warpgroups" : "warps");
    check_with_limits(fixture, each, settings, fits);
  }
}

constexpr DeviceSettings kEverySetting[] = {
    {cuda::Storage::float32, Precision::float32},
    {cuda::Storage::float32, Precision::bfloat16},
    {cuda::Storage::bfloat16, Precision::bfloat16},
};

/// The case of this many queries and clusters; its keys stay few.
Case sized(const char* name, int64_t queries, int64_t clusters, int64_t head_dim) {
  Case which = find_case(name);
  which.query_length = queries;
  which.clusters = clusters;
  which.head_dim = head_dim;
  return which;
}

TEST_ONCE("CUDA grouping at once: the bytes of the single steps, for 1 to 16 blocks") {
  const struct {
    int64_t queries;
    int64_t clusters;
    int64_t head_dim;
    int64_t multiprocessors;
  } sizes[] = {{1000, 100, 64, 32}, {1999, 37, 24, 32}, {530, 9, 32, 4}, {67, 70, 8, 1},
               {300, 5, 136, 8},    {31, 3, 8, 32},     {1, 1, 16, 32}};
  for (const auto& size : sizes) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      for (const DeviceSettings& settings : kEverySetting) {
        const Scope scope(std::to_string(size.queries) + " queries, grouping " +
                          std::to_string(static_cast<int>(grouping)));
        ClusteredFixture fixture(sized("prime-long", size.queries, size.clusters, size.head_dim),
                                 grouping);
        check_at_once(fixture, cluster_limits(size.multiprocessors, 227 * 1024), settings);
      }
    }
  }
}

TEST_ONCE("CUDA grouping at once: padding, layouts, sequences without queries") {
  for (const char* name : {"ragged", "ragged-transposed", "all-padded", "no-queries", "usual"}) {
    for (Grouping grouping : {Grouping::hamming, Grouping::given}) {
      for (const DeviceSettings& settings : kEverySetting) {
        const Scope scope(name);
        Case which = find_case(name);
        which.head_dim = 16;
        ClusteredFixture fixture(which, grouping);
        check_at_once(fixture, kHopper, settings);
      }
    }
  }
}

TEST_ONCE("CUDA grouping at once: left to the single steps where it does not fit") {
  ClusteredFixture many(find_case("ragged"), Grouping::hamming);
  check_at_once(many, cluster_limits(7, 227 * 1024), {}, false);  // eight sequences
  check_at_once(many, cluster_limits(132, 8 * 1024), {}, false);  // the planes alone are larger
  check_at_once(many, cluster_limits(132, 227 * 1024, 1, 0), {}, false);  // no clusters of any size
  check_at_once(many, cluster_limits(112, 227 * 1024, 15), {}, false);  // seven of 15 or 16 blocks
  ClusteredFixture wide(sized("prime-long", 40, 5, 257), Grouping::hamming);
  check_at_once(wide, kHopper, {}, false);
  for (int64_t head_dim : {31, 34, 36}) {  // no pairs, no 16 bytes, no chunks of eight
    const Scope scope(std::to_string(head_dim));
    ClusteredFixture odd(sized("prime-long", 40, 5, head_dim), Grouping::hamming);
    check_at_once(odd, kHopper, {}, false);
    ClusteredFixture given(sized("prime-long", 40, 5, head_dim), Grouping::given);
    check_at_once(given, kHopper, {}, head_dim % 2 == 0);
  }
  ClusteredFixture ranked(find_case("usual"), Grouping::hamming);
  ranked.problem.threshold = Threshold::data;
  Device device;
  cuda::DeviceWorkspace::Scope scope(device.session()->workspace());
  ClusteredAttentionProblem there = ranked.problem;
  there.inputs = device.inputs(there.inputs, ranked.arrays);
  there.planes = device.at(there.planes, ranked.arrays);
  Groups groups(*device.session(), scope, there, {});
  groups.hashing.threshold = Threshold::data;
  bool done = true;
  CHECK_EQUAL(describe(cuda::group_at_once(*device.session(), groups.problem, {}, kHopper, &done)),
              "ok");
  CHECK(!done);
}

}  // namespace

}  // namespace cluster_attention::test
