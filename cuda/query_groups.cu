#include "cuda/counting_sort.h"
#include "cuda/hamming_kmeans.h"
#include "cuda/hash.h"
#include "cuda/kmeans.h"
#include "cuda/member_sums.h"
#include "cuda/query_groups.h"
#include "cuda/session.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class Grouper {
 public:
  Grouper(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
          DeviceWorkspace::Scope& scope, QueryGroups& groups)
      : session_(session),
        problem_(problem),
        shape_(problem.inputs.shape),
        sequences_(shape_.batch * shape_.heads),
        call_(call),
        scope_(scope),
        groups_(groups) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    if (problem_.grouping == Grouping::hamming) {
      CA_RETURN_IF_ERROR(group_by_hashes());
    } else {
      if (problem_.grouping == Grouping::euclidean) CA_RETURN_IF_ERROR(group_by_distance());
      CA_RETURN_IF_ERROR(sort_by_label(session_, sorting()));
    }
    return average();
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
    return scope_.allocate(&counts_, clusters);
  }

  Status group_by_hashes() {
    HashSequences hashing;
    hashing.inputs = problem_.inputs.query;
    hashing.batch = shape_.batch;
    hashing.heads = shape_.heads;
    hashing.length = shape_.query_length;
    hashing.dim = shape_.head_dim;
    hashing.lengths = problem_.inputs.query_lengths;
    hashing.planes = problem_.planes;
    hashing.bits = problem_.bits;
    hashing.threshold = problem_.threshold;
    hashing.seed = problem_.seed;
    CA_RETURN_IF_ERROR(
        scope_.allocate(&hashing.hashes, checked_size(sequences_, shape_.query_length)));
    CA_RETURN_IF_ERROR(hash_sequences(session_, hashing, call_));
    HammingKMeansProblem kmeans;
    kmeans.batch = sequences_;
    kmeans.length = shape_.query_length;
    kmeans.clusters = problem_.clusters;
    kmeans.bits = problem_.bits;
    kmeans.max_iterations = problem_.iterations;
    kmeans.seed = problem_.seed;
    kmeans.hashes = hashing.hashes;
    kmeans.lengths = problem_.inputs.query_lengths;
    kmeans.labels = groups_.labels;
    kmeans.counts = counts_;
    CA_RETURN_IF_ERROR(
        scope_.allocate(&kmeans.centroids, checked_size(sequences_, problem_.clusters)));
    const SortProblem sort = sorting();
    return group_hashes(session_, kmeans, shape_.heads, &sort);
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
    kmeans.centroids = groups_.means;  // overwritten by average()
    kmeans.labels = groups_.labels;
    kmeans.counts = counts_;
    return cuda::kmeans(session_, kmeans, call_);
  }

  SortProblem sorting() const {
    SortProblem sort;
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
    return sort;
  }

  Status average() {
    MemberSumsProblem sums;
    sums.sequences = sequences_;
    sums.heads = shape_.heads;
    sums.length = shape_.query_length;
    sums.clusters = problem_.clusters;
    sums.dim = shape_.head_dim;
    sums.inputs = problem_.inputs.query;
    sums.offsets = groups_.offsets;
    sums.order = groups_.order;
    sums.output = groups_.means;
    return sum_members(session_, sums, call_);
  }

  Session& session_;
  const ClusteredAttentionProblem& problem_;
  const AttentionShape& shape_;
  const int64_t sequences_;
  const Call& call_;
  DeviceWorkspace::Scope& scope_;
  QueryGroups& groups_;
  int32_t* counts_ = nullptr;  // (B,H,C)
};

}  // namespace

Status group_queries(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
                     DeviceWorkspace::Scope& scope, QueryGroups& groups) {
  return Grouper(session, problem, call, scope, groups).run();
}

}  // namespace cluster_attention::cuda
