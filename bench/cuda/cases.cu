#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "bench/cuda/cases.h"
#include "cuda/primitives/bfloat16.cuh"
#include "cuda/hamming_kmeans.h"
#include "cuda/launch.h"
#include "cuda/query_groups.h"
#include "cuda/session.h"
#include "native/dispatch.h"
#include "test/native/data.h"

extern "C" const cluster_attention::cuda::Backend* cluster_attention_cuda_backend(uint32_t version);

namespace cluster_attention::bench {

namespace {

using cuda::Storage;

const cuda::Backend& backend() { return *cluster_attention_cuda_backend(cuda::kBackendVersion); }

constexpr int64_t kCentroids = 64;
constexpr int64_t kClusterSize = 256;
/// D = E of "attention_wide", and its longest sequence.
constexpr int64_t kWideDim = 128;
constexpr int64_t kWideLength = 16384;
constexpr int64_t kFewQueries = 128;
/// Of "centroid_neighbors": inputs for each centroid, and neighbors of one.
constexpr int64_t kInputsOfCentroid = 16;
constexpr int64_t kNeighbors = 32;

/// Floors of docs/performance.md in microseconds, for lengths 1024, 4096, 16384, 65536.
double floor_of(const std::string& name, int64_t length) {
  struct Row {
    const char* name;
    double microseconds[4];
  };
  static const Row kRows[] = {{"attention", {3, 43, 696, 11100}},
                              {"clustered", {3, 14, 56, 223}},
                              {"improved", {4, 16, 63, 254}},
                              {"centroid", {1, 4, 16, 62}},
                              {"cast", {2, 9, 47, 375}}};
  const int column = length == 1024 ? 0 : length == 4096 ? 1 : length == 16384 ? 2 : 3;
  if ((int64_t{1024} << (2 * column)) != length) return 0.0;
  for (const Row& row : kRows) {
    if (name == row.name) return row.microseconds[column] * 1e-6;
  }
  return 0.0;
}

/// Normal numbers, always the same of a seed. To draw hundreds of millions would take longer than all
/// measurements: a few millions are repeated, in steps that no length of rows divides.
std::vector<float> normal_floats(int64_t count, uint64_t seed) {
  constexpr int64_t kDrawn = 4194301;
  static std::map<uint64_t, std::vector<float>> drawn;
  std::vector<float>& numbers = drawn[seed];
  const int64_t wanted = std::min(count, kDrawn);
  if (static_cast<int64_t>(numbers.size()) < wanted) numbers = test::random_floats(wanted, seed);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(count));
  for (int64_t left = count; left > 0; left -= wanted) {
    values.insert(values.end(), numbers.begin(), numbers.begin() + std::min(left, wanted));
  }
  return values;
}

/// (1,H,queries,dim), (1,H,length,dim) twice; array(count, seed) makes what they hold.
template <typename Array>
AttentionInputs make_inputs(int64_t queries, int64_t length, int64_t dim, Array array) {
  const auto rows = [&](int64_t count, uint64_t seed) {
    return dense_rows(array(kHeads * count * dim, seed), Layout::bhld, kHeads, count, dim);
  };
  AttentionInputs inputs;
  inputs.shape = {1, kHeads, queries, length, dim, dim};
  inputs.query = rows(queries, 1);
  inputs.key = rows(length, 2);
  inputs.value = rows(length, 3);
  inputs.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return inputs;
}

/// The same on the device.
AttentionInputs make_inputs(DeviceMemory& memory, int64_t queries, int64_t length, int64_t dim,
                            Storage storage) {
  return make_inputs(queries, length, dim, [&](int64_t count, uint64_t seed) {
    return memory.floats(count, seed, storage);
  });
}

}  // namespace

ClusteredAttentionProblem make_clustered(const AttentionInputs& inputs, OutputRows output,
                                         const float* planes, int64_t top_k) {
  ClusteredAttentionProblem problem;
  problem.inputs = inputs;
  problem.clusters = kClusters;
  problem.top_k = top_k;
  problem.bits = kBits;
  problem.planes = planes;
  problem.output = output;
  return problem;
}

namespace {

double relative_distance(const std::vector<float>& actual, const std::vector<float>& expected) {
  double squared = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = static_cast<double>(actual[i]) - expected[i];
    squared += difference * difference;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(squared / norm);
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  for (void* memory : memory_) backend().release(session_, memory);
}

void* DeviceMemory::allocate(int64_t bytes) {
  void* memory = nullptr;
  if (!backend().allocate(session_, bytes, &memory).ok()) {
    complete_ = false;
    return nullptr;
  }
  memory_.push_back(memory);
  return memory;
}

const float* DeviceMemory::floats(int64_t count, uint64_t seed, Storage storage) {
  void* memory = allocate(count * cuda::storage_bytes(storage));
  if (memory == nullptr) return nullptr;
  const std::vector<float> values = normal_floats(count, seed);
  complete_ =
      complete_ && backend().upload(session_, memory, storage, values.data(), count, nullptr).ok();
  return static_cast<const float*>(memory);
}

const int32_t* DeviceMemory::indices(int64_t count, int64_t below) {
  void* memory = allocate(count * static_cast<int64_t>(sizeof(int32_t)));
  if (memory == nullptr) return nullptr;
  std::vector<int32_t> values;
  // Multiples of the golden ratio, past their whole numbers.
  uint32_t fraction = 0;
  for (int64_t i = 0; i < count; ++i, fraction += 0x9e3779b9u) {
    values.push_back(static_cast<int32_t>(fraction * static_cast<uint64_t>(below) >> 32));
  }
  complete_ = complete_ && backend()
                               .upload_bytes(session_, memory, values.data(),
                                             count * static_cast<int64_t>(sizeof(int32_t)), nullptr)
                               .ok();
  return static_cast<const int32_t*>(memory);
}

namespace {

/// The limits as if the device had clusters of so many blocks alone; 0: as they are.
cuda::ClusterLimits only_clusters_of(cuda::ClusterLimits limits, int64_t blocks) {
  if (blocks == 0) return limits;
  for (int64_t i = 1; i <= cuda::kMostClusterBlocks; ++i) {
    if (i != blocks) limits.resident[i - 1] = 0;
  }
  return limits;
}

}  // namespace

std::vector<Case> make_cases(cuda::Session* session, DeviceMemory& memory, int64_t length,
                             Storage storage) {
  const Precision precision =
      storage == Storage::bfloat16 ? Precision::bfloat16 : Precision::float32;
  cuda::Call call;
  call.storage = storage;
  call.precision = precision;
  const AttentionInputs inputs = make_inputs(memory, length, length, kDim, storage);
  const int64_t count = kHeads * length * kDim;
  float* output = static_cast<float*>(memory.allocate(count * cuda::storage_bytes(storage)));
  const OutputRows rows = dense_rows(output, Layout::bhld, kHeads, length, kDim);
  const float* planes = memory.floats(kBits * (kDim + 1), 4, Storage::float32);
  const double n = static_cast<double>(length);
  const double heads = static_cast<double>(kHeads);
  const double product =
      4.0 * heads * static_cast<double>(kDim);  // of one query and one key, twice
  const double grouping = 2.0 * heads * n * static_cast<double>(kDim * kBits);
  const double pass = product * n * static_cast<double>(kClusters);

  std::vector<Case> cases;
  const auto add = [&](const char* name, double operations, std::function<Status()> run) {
    cases.push_back(
        {name, length, storage, precision, operations, floor_of(name, length), output, run});
  };
  AttentionProblem attention;
  attention.inputs = inputs;
  attention.output = rows;
  add("attention", product * n * n,
      [=] { return backend().operations.attention(session, attention, call); });
  for (const auto& [name, queries] : {std::pair<const char*, int64_t>{"attention_one_query", 1},
                                      {"attention_few_queries", kFewQueries}}) {
    AttentionProblem few = attention;
    few.inputs.shape.query_length = queries;
    few.inputs.query = dense_rows(inputs.query.data, Layout::bhld, kHeads, queries, kDim);
    few.output = dense_rows(output, Layout::bhld, kHeads, queries, kDim);
    add(name, product * n * static_cast<double>(queries),
        [=] { return backend().operations.attention(session, few, call); });
  }
  if (length <= kWideLength) {
    AttentionProblem wide;
    wide.inputs = make_inputs(memory, length, length, kWideDim, storage);
    wide.output = dense_rows(static_cast<float*>(memory.allocate(kHeads * length * kWideDim *
                                                                 cuda::storage_bytes(storage))),
                             Layout::bhld, kHeads, length, kWideDim);
    add("attention_wide", 4.0 * heads * static_cast<double>(kWideDim) * n * n,
        [=] { return backend().operations.attention(session, wide, call); });
  }
  for (int64_t top_k : {int64_t{0}, kTopK}) {
    const ClusteredAttentionProblem problem = make_clustered(inputs, rows, planes, top_k);
    const double improving = product * n * static_cast<double>(top_k);
    add(top_k == 0 ? "clustered" : "improved", grouping + pass + improving,
        [=] { return backend().operations.clustered_attention(session, problem, call); });
  }
  HashProblem hashing;
  hashing.rows = kHeads * length;
  hashing.dim = kDim;
  hashing.bits = kBits;
  hashing.inputs = inputs.query.data;
  hashing.planes = planes;
  hashing.hashes = memory.array<uint64_t>(kHeads * length);
  add("hash", grouping, [=] { return backend().operations.hash(session, hashing, call); });
  HammingKMeansProblem kmeans;
  kmeans.batch = kHeads;
  kmeans.length = length;
  kmeans.clusters = kClusters;
  kmeans.bits = kBits;
  kmeans.hashes = hashing.hashes;
  kmeans.labels = memory.array<int32_t>(kHeads * length);
  kmeans.counts = memory.array<int32_t>(kHeads * kClusters);
  kmeans.centroids = memory.array<uint64_t>(kHeads * kClusters);
  kmeans.iterations = memory.array<int32_t>(kHeads);
  // Pairs of codes compared: xor, population count, minimum.
  add("hamming_kmeans", 3.0 * heads * n * static_cast<double>(kClusters * 11),
      [=] { return backend().operations.hamming_kmeans(session, kmeans, call); });
  // The same in each way, cut into given numbers of blocks, and as planned (0).
  using Way = cuda::HammingPlan::Way;
  cuda::ClusterLimits warpgroups = session->limits();
  warpgroups.warpgroup_hamming = session->has_warpgroup_products();
  for (Way way : {Way::clusters, Way::warpgroups}) {
    for (int64_t blocks : {0, 4, 6, 8, 12, 14, 16}) {
      cuda::HammingPlan plan;
      if (!cuda::plan_hamming_way(way, kHeads, length, kClusters,
                                  only_clusters_of(warpgroups, blocks), plan)) {
        continue;
      }
      const std::string name = way == Way::clusters ? "hamming_kmeans/" : "hamming_warpgroups/";
      add((name + (blocks == 0 ? "planned" : std::to_string(blocks))).c_str(), 0.0,
          [=] { return cuda::group_hashes(*session, kmeans, 1, plan); });
    }
  }
  // Hash, k-means, sort and means: as planned, with k-means by warpgroups, and with given numbers of
  // blocks.
  const ClusteredAttentionProblem clustered = make_clustered(inputs, rows, planes, 0);
  const auto with_limits = [session](const cuda::ClusterLimits& limits, auto run) {
    return [=] {
      const cuda::ClusterLimits usual = session->limits();
      session->set_limits(limits);
      const Status status = run();
      session->set_limits(usual);
      return status;
    };
  };
  const auto add_grouping = [&](const char* name, const cuda::ClusterLimits& limits) {
    add(name, grouping, with_limits(limits, [=] {
          cuda::DeviceWorkspace::Scope scope(session->workspace());
          cuda::QueryGroups groups;
          return cuda::group_queries(*session, clustered, call, scope, groups);
        }));
  };
  add_grouping("grouping", session->limits());
  add_grouping("grouping/warpgroups", warpgroups);
  for (int64_t blocks : {6, 8, 12, 14, 16}) {
    const cuda::ClusterLimits limits = only_clusters_of(session->limits(), blocks);
    if (limits.resident_clusters(blocks) < kHeads) continue;
    add_grouping(("grouping/" + std::to_string(blocks)).c_str(), limits);
  }
  for (int64_t top_k : {int64_t{0}, kTopK}) {
    const ClusteredAttentionProblem problem = make_clustered(inputs, rows, planes, top_k);
    add(top_k == 0 ? "clustered/warpgroups" : "improved/warpgroups", 0.0,
        with_limits(warpgroups, [=] {
          return backend().operations.clustered_attention(session, problem, call);
        }));
  }
  CentroidPoolProblem pool;
  pool.batch = 1;
  pool.length = kHeads * length;
  pool.dim = kDim;
  pool.centroids = kCentroids;
  pool.iterations = 0;  // the rows that k-means++ chooses
  pool.start = PoolStart::plus_plus;
  pool.similarity = Similarity::euclidean;
  pool.inputs = inputs.query.data;
  pool.output = static_cast<float*>(memory.allocate(kCentroids * kDim * int64_t{4}));
  add("plus_plus", 3.0 * heads * n * static_cast<double>(kCentroids * kDim),
      [=] { return backend().operations.centroid_pool(session, pool, call); });
  CentroidAttentionProblem centroid;
  centroid.inputs = inputs;
  centroid.inputs.shape.query_length = kCentroids;
  centroid.inputs.query = dense_rows(inputs.query.data, Layout::bhld, kHeads, kCentroids, kDim);
  centroid.output = dense_rows(output, Layout::bhld, kHeads, kCentroids, kDim);
  add("centroid", product * n * static_cast<double>(kCentroids),
      [=] { return backend().operations.centroid_attention(session, centroid, call); });
  const int64_t listing = length / kInputsOfCentroid;
  CentroidAttentionProblem listed = centroid;
  listed.inputs.shape.query_length = listing;
  listed.inputs.query = dense_rows(inputs.query.data, Layout::bhld, kHeads, listing, kDim);
  listed.output = dense_rows(output, Layout::bhld, kHeads, listing, kDim);
  listed.neighbors = memory.indices(listing * kNeighbors, length);
  listed.neighbor_count = kNeighbors;
  add("centroid_neighbors", product * static_cast<double>(listing * kNeighbors),
      [=] { return backend().operations.centroid_attention(session, listed, call); });
  CentroidAttentionGradientProblem centroid_gradient;
  centroid_gradient.forward = centroid;
  centroid_gradient.output_gradient = centroid.inputs.query;
  const auto gradient_rows = [&](int64_t rows_of_head) {
    void* data = memory.allocate(kHeads * rows_of_head * kDim * cuda::storage_bytes(storage));
    return dense_rows(static_cast<float*>(data), Layout::bhld, kHeads, rows_of_head, kDim);
  };
  centroid_gradient.gradients = {gradient_rows(kCentroids), gradient_rows(length),
                                 gradient_rows(length)};
  // Five products in the place of the forward's two.
  CentroidAttentionGradientProblem listed_gradient = centroid_gradient;
  listed_gradient.forward = listed;
  listed_gradient.output_gradient = listed.inputs.query;
  listed_gradient.gradients.query = gradient_rows(listing);
  add("centroid_neighbors_gradient",
      2.5 * product * static_cast<double>(listing * kNeighbors), [=] {
        return backend().operations.centroid_attention_gradient(session, listed_gradient, call);
      });
  add("centroid_gradient", 2.5 * product * n * static_cast<double>(kCentroids), [=] {
    return backend().operations.centroid_attention_gradient(session, centroid_gradient, call);
  });
  CastAttentionProblem cast;
  cast.inputs = inputs;
  cast.clusters = length / kClusterSize;
  cast.cluster_size = kClusterSize;
  cast.surrogates = memory.floats(kHeads * cast.clusters * kDim, 5, Storage::float32);
  cast.gate = memory.floats(length, 6, Storage::float32);
  cast.output = rows;
  if (cast.clusters > 0) {
    // Affinities of queries and keys, attention inside the clusters, and their summaries.
    const double columns =
        static_cast<double>(kClusterSize) + 1.5 * static_cast<double>(cast.clusters);
    add("cast", product * n * columns,
        [=] { return backend().operations.cast_attention(session, cast, call); });
  }
  add_gradient_cases(session, memory, inputs, planes, call, cases);
  return cases;
}

namespace {

/// Arrays of the host, with the floats that a storage holds.
using HostFloats = std::vector<std::vector<float>>;

AttentionInputs make_inputs(HostFloats& host, int64_t queries, int64_t length, int64_t dim,
                            Storage storage) {
  const auto array = [&](int64_t count, uint64_t seed) -> const float* {
    std::vector<float>& values = host.emplace_back(normal_floats(count, seed));
    if (storage == Storage::bfloat16) {
      for (float& value : values) value = cuda::round_to_bfloat16(value);
    }
    return values.data();
  };
  return make_inputs(queries, length, dim, array);
}

CallSettings settings_of(Storage storage) {
  CallSettings settings;
  settings.precision = storage == Storage::bfloat16 ? Precision::bfloat16 : Precision::float32;
  return settings;
}

/// Of exact attention over many keys, where sums are long.
double long_error(cuda::Session* session, Storage storage, int64_t dim) {
  constexpr int64_t kQueries = 64;
  constexpr int64_t kKeys = 65536;
  HostFloats host;
  AttentionProblem problem;
  problem.inputs = make_inputs(host, kQueries, kKeys, dim, storage);
  const int64_t count = kHeads * kQueries * dim;
  std::vector<float> expected(static_cast<size_t>(count));
  std::vector<float> actual(static_cast<size_t>(count));
  problem.output = dense_rows(expected.data(), Layout::bhld, kHeads, kQueries, dim);
  const CallSettings settings = settings_of(storage);
  Context context(8);
  if (!run(problem, settings, context).ok()) return HUGE_VAL;
  DeviceMemory memory(session);
  problem.inputs = make_inputs(memory, kQueries, kKeys, dim, storage);
  auto* output = static_cast<float*>(memory.allocate(count * cuda::storage_bytes(storage)));
  problem.output = dense_rows(output, Layout::bhld, kHeads, kQueries, dim);
  cuda::Call call;
  call.storage = storage;
  call.precision = settings.precision;
  bool non_finite = false;
  const bool worked =
      memory.complete() && backend().operations.attention(session, problem, call).ok() &&
      backend().finish(session, &non_finite).ok() &&
      backend().download(session, actual.data(), output, storage, count, nullptr).ok();
  return worked ? relative_distance(actual, expected) : HUGE_VAL;
}

}  // namespace

std::vector<CaseError> case_errors(cuda::Session* session, Storage storage) {
  constexpr int64_t kLength = 1024;
  const int64_t count = kHeads * kLength * kDim;
  HostFloats host;
  const AttentionInputs inputs = make_inputs(host, kLength, kLength, kDim, storage);
  const std::vector<float> planes = normal_floats(kBits * (kDim + 1), 4);
  std::vector<float> expected(static_cast<size_t>(count));
  const OutputRows rows = dense_rows(expected.data(), Layout::bhld, kHeads, kLength, kDim);
  const CallSettings settings = settings_of(storage);
  DeviceMemory memory(session);
  std::vector<CaseError> errors;
  for (const Case& one : make_cases(session, memory, kLength, storage)) {
    const bool compared =
        one.name == "attention" || one.name == "clustered" || one.name == "improved";
    if (!compared) continue;  // the others' tests are stricter than this
    Context context(8);
    AttentionProblem exact;
    exact.inputs = inputs;
    exact.output = rows;
    const int64_t top_k = one.name == "improved" ? kTopK : 0;
    const Status on_cpu =
        one.name == "attention"
            ? run(exact, settings, context)
            : run(make_clustered(inputs, rows, planes.data(), top_k), settings, context);
    bool non_finite = false;
    const bool worked = memory.complete() && on_cpu.ok() && one.run().ok() &&
                        backend().finish(session, &non_finite).ok();
    std::vector<float> actual(static_cast<size_t>(count));
    const bool fetched =
        worked &&
        backend().download(session, actual.data(), one.output, storage, count, nullptr).ok();
    errors.push_back({one.name, fetched ? relative_distance(actual, expected) : HUGE_VAL});
  }
  for (int64_t dim : {kDim, kWideDim}) {
    errors.push_back({"attention_long/" + std::to_string(dim), long_error(session, storage, dim)});
  }
  return errors;
}

}  // namespace cluster_attention::bench
