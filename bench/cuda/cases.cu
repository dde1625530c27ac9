#include "bench/cuda/cases.h"

#include <utility>

#include "cuda/hamming_kmeans.h"
#include "cuda/launch.h"
#include "cuda/query_groups.h"
#include "cuda/session.h"

namespace cluster_attention::bench {

namespace {

using cuda::Storage;

constexpr int64_t kCentroids = 64;
constexpr int64_t kClusterSize = 256;
constexpr int64_t kFewQueries = 128;
/// The longest sequence of "attention_wide".
constexpr int64_t kWideLength = 16384;
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

/// The limits as if the device had clusters of so many blocks alone; 0: as they are.
cuda::ClusterLimits only_clusters_of(cuda::ClusterLimits limits, int64_t blocks) {
  if (blocks == 0) return limits;
  for (int64_t i = 1; i <= cuda::kMostClusterBlocks; ++i) {
    if (i != blocks) limits.resident[i - 1] = 0;
  }
  return limits;
}

/// The cases of one length and storage, family by family.
class Cases {
 public:
  Cases(cuda::Session* session, DeviceMemory& memory, int64_t length, Storage storage)
      : session_(session), memory_(memory), length_(length), n_(static_cast<double>(length)) {
    call_.storage = storage;
    call_.precision = storage == Storage::bfloat16 ? Precision::bfloat16 : Precision::float32;
    inputs_ = make_inputs(memory, length, length, kDim, storage);
    output_ = rows(length);
    planes_ = memory.floats(kBits * (kDim + 1), 4, Storage::float32);
  }

  std::vector<Case> make() {
    add_attention();
    add_clustered();
    add_hashing();
    add_grouping();
    add_warpgroups();
    add_pool();
    add_centroids();
    add_cast();
    add_gradient_cases(session_, memory_, inputs_, planes_, call_, cases_);
    return std::move(cases_);
  }

 private:
  static constexpr double kHeadCount = static_cast<double>(kHeads);
  /// Operations of one query and one key, twice: its score, and its value's share.
  static constexpr double kProduct = 4.0 * kHeadCount * static_cast<double>(kDim);

  void add(const std::string& name, double operations, std::function<Status()> run) {
    cases_.push_back({name, length_, call_.storage, call_.precision, operations,
                      floor_of(name, length_), output_.data, std::move(run)});
  }

  /// operation(session, problem, call), later.
  template <typename Problem>
  std::function<Status()> run_of(cuda::Operation<Problem> operation, const Problem& problem) const {
    return [session = session_, call = call_, operation, problem] {
      return operation(session, problem, call);
    };
  }

  /// A result of so many rows for each head.
  OutputRows rows(int64_t count, int64_t dim = kDim) {
    void* data = memory_.allocate(kHeads * count * dim * cuda::storage_bytes(call_.storage));
    return dense_rows(static_cast<float*>(data), Layout::bhld, kHeads, count, dim);
  }

  /// The first queries of each head's, and where their results go.
  AttentionInputs with_queries(int64_t queries) const {
    AttentionInputs inputs = inputs_;
    inputs.shape.query_length = queries;
    inputs.query = dense_rows(inputs_.query.data, Layout::bhld, kHeads, queries, kDim);
    return inputs;
  }
  OutputRows output_of(int64_t queries) const {
    return dense_rows(output_.data, Layout::bhld, kHeads, queries, kDim);
  }

  void add_attention() {
    const auto operation = backend().operations.attention;
    for (const auto& [name, queries] : {std::pair<const char*, int64_t>{"attention", length_},
                                        {"attention_one_query", 1},
                                        {"attention_few_queries", kFewQueries}}) {
      AttentionProblem problem;
      problem.inputs = with_queries(queries);
      problem.output = output_of(queries);
      add(name, kProduct * n_ * static_cast<double>(queries), run_of(operation, problem));
    }
    if (length_ > kWideLength) return;
    AttentionProblem wide;
    wide.inputs = make_inputs(memory_, length_, length_, kWideDim, call_.storage);
    wide.output = rows(length_, kWideDim);
    add("attention_wide", 4.0 * kHeadCount * static_cast<double>(kWideDim) * n_ * n_,
        run_of(operation, wide));
  }

  std::function<Status()> clustered(int64_t top_k) const {
    return run_of(backend().operations.clustered_attention,
                  make_clustered(inputs_, output_, planes_, top_k));
  }

  void add_clustered() {
    const double pass = kProduct * n_ * static_cast<double>(kClusters);
    const double improving = kProduct * n_ * static_cast<double>(kTopK);
    add("clustered", hashing() + pass, clustered(0));
    add("improved", hashing() + pass + improving, clustered(kTopK));
  }

  double hashing() const { return 2.0 * kHeadCount * n_ * static_cast<double>(kDim * kBits); }

  /// Hashes, and their k-means in each way, cut into given numbers of blocks, and as planned (0).
  void add_hashing() {
    HashProblem hash;
    hash.rows = kHeads * length_;
    hash.dim = kDim;
    hash.bits = kBits;
    hash.inputs = inputs_.query.data;
    hash.planes = planes_;
    hash.hashes = memory_.array<uint64_t>(kHeads * length_);
    add("hash", hashing(), run_of(backend().operations.hash, hash));
    HammingKMeansProblem kmeans;
    kmeans.batch = kHeads;
    kmeans.length = length_;
    kmeans.clusters = kClusters;
    kmeans.bits = kBits;
    kmeans.hashes = hash.hashes;
    kmeans.labels = memory_.array<int32_t>(kHeads * length_);
    kmeans.counts = memory_.array<int32_t>(kHeads * kClusters);
    kmeans.centroids = memory_.array<uint64_t>(kHeads * kClusters);
    kmeans.iterations = memory_.array<int32_t>(kHeads);
    // Pairs of codes compared: xor, population count, minimum.
    add("hamming_kmeans", 3.0 * kHeadCount * n_ * static_cast<double>(kClusters * 11),
        run_of(backend().operations.hamming_kmeans, kmeans));
    using Way = cuda::HammingPlan::Way;
    for (Way way : {Way::clusters, Way::warpgroups}) {
      for (int64_t blocks : {0, 4, 6, 8, 12, 14, 16}) {
        cuda::HammingPlan plan;
        if (!cuda::plan_hamming_way(way, kHeads, length_, kClusters,
                                    only_clusters_of(warpgroup_limits(), blocks), plan)) {
          continue;
        }
        const std::string name = way == Way::clusters ? "hamming_kmeans/" : "hamming_warpgroups/";
        add(name + (blocks == 0 ? "planned" : std::to_string(blocks)), 0.0,
            [=, session = session_] { return cuda::group_hashes(*session, kmeans, 1, plan); });
      }
    }
  }

  /// Those of the device, where k-means by warpgroups is allowed too.
  cuda::ClusterLimits warpgroup_limits() const {
    cuda::ClusterLimits limits = session_->limits();
    limits.warpgroup_hamming = session_->has_warpgroup_products();
    return limits;
  }

  std::function<Status()> with_limits(const cuda::ClusterLimits& limits,
                                      std::function<Status()> run) const {
    return [session = session_, limits, run = std::move(run)] {
      const cuda::ClusterLimits usual = session->limits();
      session->set_limits(limits);
      const Status status = run();
      session->set_limits(usual);
      return status;
    };
  }

  /// Hash, k-means, sort and means: as planned, with k-means by warpgroups, and with given numbers
  /// of blocks.
  void add_grouping() {
    const ClusteredAttentionProblem problem = make_clustered(inputs_, output_, planes_, 0);
    const auto add_with = [&](const std::string& name, const cuda::ClusterLimits& limits) {
      add(name, hashing(), with_limits(limits, [session = session_, call = call_, problem] {
            cuda::DeviceWorkspace::Scope scope(session->workspace());
            cuda::QueryGroups groups;
            return cuda::group_queries(*session, problem, call, scope, groups);
          }));
    };
    add_with("grouping", session_->limits());
    add_with("grouping/warpgroups", warpgroup_limits());
    for (int64_t blocks : {6, 8, 12, 14, 16}) {
      const cuda::ClusterLimits limits = only_clusters_of(session_->limits(), blocks);
      if (limits.resident_clusters(blocks) < kHeads) continue;
      add_with("grouping/" + std::to_string(blocks), limits);
    }
  }

  void add_warpgroups() {
    add("clustered/warpgroups", 0.0, with_limits(warpgroup_limits(), clustered(0)));
    add("improved/warpgroups", 0.0, with_limits(warpgroup_limits(), clustered(kTopK)));
  }

  void add_pool() {
    CentroidPoolProblem pool;
    pool.batch = 1;
    pool.length = kHeads * length_;
    pool.dim = kDim;
    pool.centroids = kCentroids;
    pool.iterations = 0;  // the rows that k-means++ chooses
    pool.start = PoolStart::plus_plus;
    pool.similarity = Similarity::euclidean;
    pool.inputs = inputs_.query.data;
    pool.output = memory_.array<float>(kCentroids * kDim);
    add("plus_plus", 3.0 * kHeadCount * n_ * static_cast<double>(kCentroids * kDim),
        run_of(backend().operations.centroid_pool, pool));
  }

  void add_centroids() {
    CentroidAttentionProblem dense;
    dense.inputs = with_queries(kCentroids);
    dense.output = output_of(kCentroids);
    add_centroid_case("centroid", dense, n_ * static_cast<double>(kCentroids));
    CentroidAttentionProblem listed;
    const int64_t centroids = length_ / kInputsOfCentroid;
    listed.inputs = with_queries(centroids);
    listed.output = output_of(centroids);
    listed.neighbors = memory_.indices(centroids * kNeighbors, length_);
    listed.neighbor_count = kNeighbors;
    add_centroid_case("centroid_neighbors", listed, static_cast<double>(centroids * kNeighbors));
  }

  /// Centroid attention and its gradient, which has five products in the place of two.
  void add_centroid_case(const std::string& name, const CentroidAttentionProblem& problem,
                         double pairs) {
    add(name, kProduct * pairs, run_of(backend().operations.centroid_attention, problem));
    CentroidAttentionGradientProblem gradient;
    gradient.forward = problem;
    gradient.output_gradient = problem.inputs.query;
    gradient.gradients = {rows(problem.inputs.shape.query_length), rows(length_), rows(length_)};
    add(name + "_gradient", 2.5 * kProduct * pairs,
        run_of(backend().operations.centroid_attention_gradient, gradient));
  }

  void add_cast() {
    CastAttentionProblem cast;
    cast.inputs = inputs_;
    cast.clusters = length_ / kClusterSize;
    if (cast.clusters == 0) return;
    cast.cluster_size = kClusterSize;
    cast.surrogates = memory_.floats(kHeads * cast.clusters * kDim, 5, Storage::float32);
    cast.gate = memory_.floats(length_, 6, Storage::float32);
    cast.output = output_;
    // Affinities of queries and keys, attention inside the clusters, and their summaries.
    const double columns =
        static_cast<double>(kClusterSize) + 1.5 * static_cast<double>(cast.clusters);
    add("cast", kProduct * n_ * columns, run_of(backend().operations.cast_attention, cast));
  }

  cuda::Session* session_;
  DeviceMemory& memory_;
  const int64_t length_;
  const double n_;
  cuda::Call call_;
  AttentionInputs inputs_;
  OutputRows output_;
  const float* planes_ = nullptr;
  std::vector<Case> cases_;
};

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

std::vector<Case> make_cases(cuda::Session* session, DeviceMemory& memory, int64_t length,
                             Storage storage) {
  return Cases(session, memory, length, storage).make();
}

}  // namespace cluster_attention::bench
