#include "native/kernels/query_groups.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/aggregate.h"
#include "native/kernels/counting_sort.h"
#include "native/kernels/first_index.h"
#include "native/kernels/hamming_kmeans.h"
#include "native/kernels/hash.h"
#include "native/kernels/kmeans.h"

namespace cluster_attention::kernels {

namespace {

/// As many sums stay in the second-level cache.
constexpr int64_t kCachedSums = 32 * 1024;

class Grouper {
 public:
  Grouper(const ClusteredAttentionProblem& problem, Context& context, QueryGroups& groups)
      : problem_(problem),
        shape_(problem.inputs.shape),
        sequences_(shape_.batch * shape_.heads),
        context_(context),
        groups_(groups) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    switch (problem_.grouping) {
      case Grouping::given:
        copy_labels();
        break;
      case Grouping::hamming:
        CA_RETURN_IF_ERROR(group_by_hashes());
        break;
      case Grouping::euclidean:
        CA_RETURN_IF_ERROR(group_by_distance());
        break;
    }
    return sort();
  }

 private:
  Status allocate() {
    Workspace& workspace = context_.workspace();
    const int64_t queries = sequences_ * shape_.query_length;
    const int64_t clusters = sequences_ * problem_.clusters;
    groups_.labels = workspace.allocate<int32_t>(queries);
    groups_.offsets = workspace.allocate<int32_t>(clusters + sequences_);
    groups_.order = workspace.allocate<int32_t>(queries);
    groups_.active = workspace.allocate<int32_t>(clusters);
    groups_.active_count = workspace.allocate<int32_t>(sequences_);
    groups_.means = workspace.allocate<float>(clusters * shape_.head_dim);
    const bool complete = groups_.labels != nullptr && groups_.offsets != nullptr &&
                          groups_.order != nullptr && groups_.active != nullptr &&
                          groups_.active_count != nullptr && groups_.means != nullptr;
    const int64_t sums = problem_.clusters * std::max(shape_.head_dim, shape_.value_dim);
    if (complete && sums <= kCachedSums) {
      groups_.sums = workspace.allocate<double>(context_.workers() * sums);
      if (groups_.sums == nullptr) return Status::out_of_memory();
    }
    return complete ? Status::success() : Status::out_of_memory();
  }

  int64_t real_queries(int64_t sequence) const {
    return real_length(problem_.inputs.query_lengths, sequence / shape_.heads, shape_.query_length);
  }

  void copy_labels() {
    for (int64_t s = 0; s < sequences_; ++s) {
      int32_t* labels = groups_.labels + s * shape_.query_length;
      std::copy_n(problem_.given_labels + s * shape_.query_length, real_queries(s), labels);
      std::fill(labels + real_queries(s), labels + shape_.query_length, -1);
    }
  }

  Status group_by_hashes() {
    Workspace& workspace = context_.workspace();
    uint64_t* hashes = workspace.allocate<uint64_t>(sequences_ * shape_.query_length);
    uint64_t* centroids = workspace.allocate<uint64_t>(sequences_ * problem_.clusters);
    int32_t* counts = workspace.allocate<int32_t>(sequences_ * problem_.clusters);
    int32_t* iterations = workspace.allocate<int32_t>(sequences_);
    int32_t* lengths = workspace.allocate<int32_t>(sequences_);
    if (hashes == nullptr || centroids == nullptr || counts == nullptr || iterations == nullptr ||
        lengths == nullptr) {
      return Status::out_of_memory();
    }
    CA_RETURN_IF_ERROR(hash_sequences(problem_.inputs.query, shape_.batch, shape_.heads,
                                      shape_.query_length, shape_.head_dim,
                                      problem_.inputs.query_lengths, problem_.planes, problem_.bits,
                                      problem_.threshold, problem_.seed, context_, hashes));
    for (int64_t s = 0; s < sequences_; ++s) lengths[s] = static_cast<int32_t>(real_queries(s));
    HammingKMeansProblem kmeans;
    kmeans.batch = sequences_;
    kmeans.length = shape_.query_length;
    kmeans.clusters = problem_.clusters;
    kmeans.bits = problem_.bits;
    kmeans.max_iterations = problem_.iterations;
    kmeans.seed = problem_.seed;
    kmeans.hashes = hashes;
    kmeans.lengths = lengths;
    kmeans.labels = groups_.labels;
    kmeans.counts = counts;
    kmeans.centroids = centroids;
    kmeans.iterations = iterations;
    return hamming_kmeans(kmeans, context_);
  }

  Status group_by_distance() {
    Workspace& workspace = context_.workspace();
    KMeansProblem problem;
    problem.batch = shape_.batch;
    problem.heads = shape_.heads;
    problem.length = shape_.query_length;
    problem.dim = shape_.head_dim;
    problem.clusters = problem_.clusters;
    problem.max_iterations = problem_.iterations;
    problem.tolerance = -1.0;  // below any movement: stops at the fixpoint alone
    problem.seed = problem_.seed;
    problem.start = KMeansStart::sample;
    problem.inputs = problem_.inputs.query;
    problem.lengths = problem_.inputs.query_lengths;
    problem.centroids = groups_.means;  // overwritten by average_queries()
    problem.labels = groups_.labels;
    problem.counts = workspace.allocate<int32_t>(sequences_ * problem_.clusters);
    if (problem.counts == nullptr) return Status::out_of_memory();
    return kmeans(problem, context_);
  }

  Status sort() {
    const int64_t clusters = problem_.clusters;
    FirstIndex bad_label;
    CA_RETURN_IF_ERROR(context_.parallel(
        sequences_,
        [&](int64_t s, int) {
          const int64_t first = s * shape_.query_length;
          int32_t* offsets = groups_.offsets + s * (clusters + 1);
          const Status status = sort_by_label(groups_.labels + first, shape_.query_length, clusters,
                                              "labels", first, offsets, groups_.order + first);
          if (!status.ok()) return bad_label.report(status.index);
          int32_t* active = groups_.active + s * clusters;
          int32_t count = 0;
          for (int64_t c = 0; c < clusters; ++c) {
            if (offsets[c + 1] > offsets[c]) active[count++] = static_cast<int32_t>(c);
          }
          groups_.active_count[s] = count;
        },
        static_cast<double>(sequences_ * shape_.query_length)));
    return bad_label.status("labels");
  }

  const ClusteredAttentionProblem& problem_;
  const AttentionShape& shape_;
  const int64_t sequences_;
  Context& context_;
  QueryGroups& groups_;
};

}  // namespace

Status group_queries(const ClusteredAttentionProblem& problem, Context& context,
                     QueryGroups& groups) {
  return Grouper(problem, context, groups).run();
}

Status aggregate_queries(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                         Range sequences, const InputRows& rows, int64_t dim, bool mean,
                         float* output, Context& context) {
  constexpr int64_t kClustersPerTask = 16;
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t clusters = problem.clusters;
  const int64_t size = clusters * std::max(shape.head_dim, shape.value_dim);
  // A task reads all labels, or its clusters' members alone.
  const int64_t wanted = groups.sums != nullptr
                             ? divide_up(context.workers(), std::max<int64_t>(sequences.size(), 1))
                             : divide_up(clusters, kClustersPerTask);
  const int64_t blocks = std::min(wanted, clusters);
  return context.parallel(
      sequences.size() * blocks,
      [&](int64_t task, int worker) {
        const int64_t s = sequences.begin + task / blocks;
        const Range block = split(clusters, blocks, task % blocks);
        const float* first = rows.sequence(s / shape.heads, s % shape.heads);
        const int32_t* offsets = groups.offsets + s * (clusters + 1);
        float* target = output + (task / blocks * clusters + block.begin) * dim;
        const bool finite =
            groups.sums != nullptr
                ? aggregate_labelled(first, rows.row_stride, groups.labels + s * shape.query_length,
                                     shape.query_length, offsets, block, dim, mean,
                                     groups.sums + worker * size, target)
                : aggregate_sorted(first, rows.row_stride, groups.order + s * shape.query_length,
                                   offsets + block.begin, block.size(), dim, mean, target);
        if (!finite) context.mark_non_finite();
      },
      static_cast<double>(sequences.size() * shape.query_length * dim));
}

Status average_queries(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                       Range sequences, Context& context) {
  const int64_t dim = problem.inputs.shape.head_dim;
  return aggregate_queries(problem, groups, sequences, problem.inputs.query, dim, true,
                           groups.means + sequences.begin * problem.clusters * dim, context);
}

}  // namespace cluster_attention::kernels
