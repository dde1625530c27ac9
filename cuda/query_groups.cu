#include "cuda/group_cluster.h"
#include "cuda/hamming_kmeans.h"
#include "cuda/kmeans.h"
#include "cuda/query_groups.h"
#include "cuda/session.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class Grouper {
 public:
  Grouper(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
          DeviceWorkspace::Scope& scope, QueryGroups& groups, const GroupExtras& extras)
      : session_(session),
        problem_(problem),
        shape_(problem.inputs.shape),
        sequences_(shape_.batch * shape_.heads),
        call_(call),
        scope_(scope),
        groups_(groups),
        extras_(extras) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    prepare();
    bool done = false;
    if (problem_.grouping != Grouping::euclidean) {
      CA_RETURN_IF_ERROR(group_at_once(session_, steps_, call_, &done));
    }
    return done ? Status::success() : run_steps();
  }

 private:
  Status allocate() {
    const int64_t queries = checked_size(sequences_, shape_.query_length);
    const int64_t clusters = checked_size(sequences_, problem_.clusters);
    CA_RETURN_IF_ERROR(scope_.allocate(&groups_.labels, queries));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&groups_.offsets, checked_size(sequences_, problem_.clusters + 1)));
    CA_RETURN_IF_ERROR(scope_.allocate(&groups_.order, queries));
    CA_RETURN_IF_ERROR(scope_.allocate(&groups_.active, clusters));
    CA_RETURN_IF_ERROR(scope_.allocate(&groups_.active_count, sequences_));
    CA_RETURN_IF_ERROR(scope_.allocate(&groups_.means, checked_size(clusters, shape_.head_dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&counts_, clusters));
    if (problem_.grouping != Grouping::hamming) return Status::success();
    CA_RETURN_IF_ERROR(scope_.allocate(&hashing_.hashes, queries));
    return scope_.allocate(&steps_.kmeans.centroids, clusters);
  }

  void prepare() {
    if (problem_.grouping == Grouping::hamming) prepare_hashes();
    prepare_sort();
    add_sums(Reduce::mean, problem_.inputs.query, shape_.head_dim, groups_.means);
    if (extras_.sums != nullptr) add_sums(Reduce::sum, extras_.rows, extras_.dim, extras_.sums);
    steps_.packing = extras_.packing;
  }

  void prepare_hashes() {
    hashing_.inputs = problem_.inputs.query;
    hashing_.batch = shape_.batch;
    hashing_.heads = shape_.heads;
    hashing_.length = shape_.query_length;
    hashing_.dim = shape_.head_dim;
    hashing_.lengths = problem_.inputs.query_lengths;
    hashing_.planes = problem_.planes;
    hashing_.bits = problem_.bits;
    hashing_.threshold = problem_.threshold;
    hashing_.seed = problem_.seed;
    steps_.hashing = &hashing_;
    HammingKMeansProblem& kmeans = steps_.kmeans;
    kmeans.batch = sequences_;
    kmeans.length = shape_.query_length;
    kmeans.clusters = problem_.clusters;
    kmeans.bits = problem_.bits;
    kmeans.max_iterations = problem_.iterations;
    kmeans.seed = problem_.seed;
    kmeans.hashes = hashing_.hashes;
    kmeans.lengths = problem_.inputs.query_lengths;
    kmeans.labels = groups_.labels;
    kmeans.counts = counts_;
  }

  Status group_by_distance() {
    KMeansProblem kmeans;
    kmeans.batch = shape_.batch;
    kmeans.heads = shape_.heads;
    kmeans.length = shape_.query_length;
    kmeans.dim = shape_.head_dim;
    kmeans.clusters = problem_.clusters;
    kmeans.max_iterations = problem_.iterations;
    kmeans.tolerance = -1.0;  // below any movement: stops at the fixpoint alone
    kmeans.seed = problem_.seed;
    kmeans.start = KMeansStart::sample;
    kmeans.inputs = problem_.inputs.query;
    kmeans.lengths = problem_.inputs.query_lengths;
    kmeans.centroids = groups_.means;  // overwritten by the means
    kmeans.labels = groups_.labels;
    kmeans.counts = counts_;
    return cuda::kmeans(session_, kmeans, call_);
  }

  void prepare_sort() {
    SortProblem& sort = steps_.sort;
    sort.sequences = sequences_;
    sort.heads = shape_.heads;
    sort.length = shape_.query_length;
    sort.clusters = problem_.clusters;
    sort.labels = groups_.labels;
    if (problem_.grouping == Grouping::given) {
      sort.labels = problem_.given_labels;
      sort.clean = groups_.labels;
    }
    sort.lengths = problem_.inputs.query_lengths;
    sort.offsets = groups_.offsets;
    sort.order = groups_.order;
    sort.active = groups_.active;
    sort.active_count = groups_.active_count;
  }

  void add_sums(Reduce reduce, const InputRows& rows, int64_t dim, float* output) {
    MemberSumsProblem& sums = steps_.sums[steps_.sum_count++];
    sums.reduce = reduce;
    sums.sequences = sequences_;
    sums.heads = shape_.heads;
    sums.length = shape_.query_length;
    sums.clusters = problem_.clusters;
    sums.dim = dim;
    sums.inputs = rows;
    sums.offsets = groups_.offsets;
    sums.order = groups_.order;
    sums.output = output;
  }

  /// Each step in launches of its own.
  Status run_steps() {
    if (problem_.grouping == Grouping::hamming) {
      CA_RETURN_IF_ERROR(hash_sequences(session_, hashing_, call_));
      CA_RETURN_IF_ERROR(group_hashes(session_, steps_.kmeans, shape_.heads, &steps_.sort));
    } else {
      if (problem_.grouping == Grouping::euclidean) CA_RETURN_IF_ERROR(group_by_distance());
      CA_RETURN_IF_ERROR(sort_by_label(session_, steps_.sort));
    }
    for (int i = 0; i < steps_.sum_count; ++i) {
      CA_RETURN_IF_ERROR(sum_members(session_, steps_.sums[i], call_));
    }
    return extras_.packing != nullptr ? pack(session_, *extras_.packing) : Status::success();
  }

  Session& session_;
  const ClusteredAttentionProblem& problem_;
  const AttentionShape& shape_;
  const int64_t sequences_;
  const Call& call_;
  DeviceWorkspace::Scope& scope_;
  QueryGroups& groups_;
  const GroupExtras& extras_;
  HashSequences hashing_;
  GroupProblem steps_;
  int32_t* counts_ = nullptr;  // (B,H,C)
};

}  // namespace

Status group_queries(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
                     DeviceWorkspace::Scope& scope, QueryGroups& groups,
                     const GroupExtras& extras) {
  return Grouper(session, problem, call, scope, groups, extras).run();
}

}  // namespace cluster_attention::cuda
