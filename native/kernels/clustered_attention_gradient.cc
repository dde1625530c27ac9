#include "native/kernels/clustered_attention_gradient.h"

#include <algorithm>
#include <limits>

#include "native/core/shape.h"
#include "native/kernels/attention_gradient.h"
#include "native/kernels/counting_sort.h"
#include "native/kernels/finite.h"
#include "native/kernels/key_tile_gradient.h"
#include "native/kernels/prefetch.h"
#include "native/kernels/query_groups.h"
#include "native/kernels/top_key_gradient.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kClustersPerTask = 4;
constexpr int64_t kQueriesPerTask = 512;
constexpr int64_t kKeysPerTask = 256;
/// Pairs (cluster, top key) whose rows are kept at a time: kSlotsPerKey per key, or kMinimumSlots.
constexpr int64_t kSlotsPerKey = 2;
constexpr int64_t kMinimumSlots = 4096;
/// A sequence of this size stays in the cache from its first reading to its last.
constexpr int64_t kCachedBytes = int64_t{16} << 20;

class ClusteredGradientKernel {
 public:
  ClusteredGradientKernel(const ClusteredAttentionGradientProblem& problem, Context& context)
      : problem_(problem),
        forward_(problem.forward),
        shape_(problem.forward.inputs.shape),
        clusters_(problem.forward.clusters),
        k_(problem.forward.top_k),
        context_(context) {}

  Status run() {
    ClusteredAttentionProblem grouped = forward_;
    grouped.grouping = Grouping::given;
    grouped.given_labels = forward_.labels;
    CA_RETURN_IF_ERROR(group_queries(grouped, context_, groups_));
    const int64_t sequences = shape_.batch * shape_.heads;
    // As many sequences at a time as keep all threads busy, with their state in the cache.
    const int64_t group = std::min<int64_t>(sequences, context_.workers());
    CA_RETURN_IF_ERROR(
        key_tiles_.prepare(forward_.inputs, problem_.gradients, clusters_, group, context_));
    CA_RETURN_IF_ERROR(allocate(group));
    for (int64_t first = 0; first < sequences; first += group) {
      first_ = first;
      count_ = std::min(group, sequences - first);
      CA_RETURN_IF_ERROR(read_ahead());
      CA_RETURN_IF_ERROR(average_queries(forward_, groups_, {first, first + count_}, context_));
      CA_RETURN_IF_ERROR(sum_gradients());
      if (k_ > 0) CA_RETURN_IF_ERROR(differentiate_top_keys());
      CA_RETURN_IF_ERROR(differentiate_means());
      if (problem_.gradients.query.data != nullptr) CA_RETURN_IF_ERROR(write_queries());
    }
    return Status::success();
  }

 private:
  Status allocate(int64_t group) {
    Workspace& workspace = context_.workspace();
    const int64_t rows = group * clusters_;
    gradients_ = workspace.allocate<float>(rows * shape_.value_dim);
    mean_gradients_ = workspace.allocate<float>(rows * shape_.head_dim);
    maximum_ = workspace.allocate<float>(rows);
    offset_ = workspace.allocate<float>(rows);
    change_ = workspace.allocate<float>(rows);
    if (gradients_ == nullptr || mean_gradients_ == nullptr || maximum_ == nullptr ||
        offset_ == nullptr || change_ == nullptr) {
      return Status::out_of_memory();
    }
    if (k_ == 0) return Status::success();
    CA_RETURN_IF_ERROR(top_keys_.prepare(problem_, context_));
    chunk_slots_ = chunk_clusters(shape_.key_length) * k_;
    lists_ = workspace.allocate<int32_t>(rows * k_);
    slot_offsets_ = workspace.allocate<int64_t>(group * (shape_.key_length + 1));
    slots_ = workspace.allocate<int64_t>(rows * k_);
    key_rows_ = workspace.allocate<float>(group * chunk_slots_ * top_keys_.padded_dim());
    value_rows_ = workspace.allocate<float>(group * chunk_slots_ * top_keys_.padded_value_dim());
    const bool complete = lists_ != nullptr && slot_offsets_ != nullptr && slots_ != nullptr &&
                          key_rows_ != nullptr && value_rows_ != nullptr;
    return complete ? Status::success() : Status::out_of_memory();
  }

  /// Clusters whose rows per top key are kept at a time: by the real keys of a sequence alone.
  int64_t chunk_clusters(int64_t keys) const {
    return std::clamp<int64_t>(std::max(kSlotsPerKey * keys, kMinimumSlots) / k_, 1, clusters_);
  }

  /// Members of a cluster: [offsets[c], offsets[c + 1]) of the order.
  const int32_t* offsets(int64_t place) const {
    return groups_.offsets + (first_ + place) * (clusters_ + 1);
  }
  const int32_t* order(int64_t place) const {
    return groups_.order + (first_ + place) * shape_.query_length;
  }
  int64_t real_keys(int64_t place) const {
    return real_length(forward_.inputs.key_lengths, (first_ + place) / shape_.heads,
                       shape_.key_length);
  }
  /// Clusters up to the last one with members.
  int64_t used_clusters(int64_t place) const {
    const int64_t active = groups_.active_count[first_ + place];
    return active == 0 ? 0 : 1 + groups_.active[(first_ + place) * clusters_ + active - 1];
  }

  /// Brings the rows of the sequences into the cache in the order of the memory: the steps read
  /// them in the order of the clusters, several times, at a third of the memory's speed.
  Status read_ahead() {
    const int64_t elements =
        (shape_.query_length + shape_.key_length) * (shape_.head_dim + shape_.value_dim);
    if (elements == 0 || elements * static_cast<int64_t>(sizeof(float)) > kCachedBytes) {
      return Status::success();
    }
    const auto read = [&](int64_t task, int) {
      const int64_t batch = (first_ + task / 2) / shape_.heads;
      const int64_t head = (first_ + task / 2) % shape_.heads;
      const auto read_rows = [&](const InputRows& rows, int64_t length, int64_t dim) {
        for (int64_t i = 0; i < length; ++i) read_row(rows.row(batch, head, i), dim);
      };
      if (task % 2 == 0) {
        read_rows(forward_.inputs.query, shape_.query_length, shape_.head_dim);
        read_rows(problem_.output_gradient, shape_.query_length, shape_.value_dim);
      } else {
        read_rows(forward_.inputs.key, shape_.key_length, shape_.head_dim);
        read_rows(forward_.inputs.value, shape_.key_length, shape_.value_dim);
      }
    };
    return context_.parallel(2 * count_, read, static_cast<double>(count_ * elements));
  }

  /// G, the log-sum-exps, and delta of plain clustered attention.
  Status sum_gradients() {
    CA_RETURN_IF_ERROR(aggregate_queries(forward_, groups_, {first_, first_ + count_},
                                         problem_.output_gradient, shape_.value_dim, false,
                                         gradients_, context_));
    return context_.parallel(
        count_ * clusters_,
        [&](int64_t task, int) { find_offset(task / clusters_, task % clusters_); },
        static_cast<double>(2 * count_ * clusters_ * shape_.value_dim));
  }

  void find_offset(int64_t place, int64_t cluster) {
    const int64_t row = place * clusters_ + cluster;
    const int64_t saved = (first_ + place) * clusters_ + cluster;
    const bool empty = offsets(place)[cluster] == offsets(place)[cluster + 1];
    maximum_[row] = maximum_of(empty ? -std::numeric_limits<float>::infinity()
                                     : forward_.cluster_logsumexp[saved]);
    change_[row] = 0.0f;
    double offset = 0.0;
    for (int64_t e = 0; !empty && e < shape_.value_dim; ++e) {
      offset += static_cast<double>(gradients_[row * shape_.value_dim + e]) *
                static_cast<double>(forward_.cluster_values[saved * shape_.value_dim + e]);
    }
    offset_[row] = static_cast<float>(offset);
  }

  // ---- improved ---------------------------------------------------------------------------------

  /// Everything that goes through p, and delta and mu of every cluster.
  Status differentiate_top_keys() {
    CA_RETURN_IF_ERROR(context_.parallel(
        count_, [&](int64_t place, int) { sort_lists(place); },
        4.0 * static_cast<double>(count_ * (clusters_ * k_ + shape_.key_length))));
    int64_t chunks = 0;
    for (int64_t place = 0; place < count_; ++place) chunks = std::max(chunks, chunks_of(place));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      CA_RETURN_IF_ERROR(differentiate_chunk(chunk));
      if (chunk + 1 < chunks) CA_RETURN_IF_ERROR(add_chunk(chunk));
    }
    return Status::success();
  }

  int64_t chunks_of(int64_t place) const {
    return divide_up(used_clusters(place), chunk_clusters(real_keys(place)));
  }

  /// Lists the pairs (cluster, top key) of a sequence by key.
  void sort_lists(int64_t place) {
    const int64_t first = (first_ + place) * clusters_ * k_;
    int32_t* lists = lists_ + place * clusters_ * k_;
    std::fill_n(lists, clusters_ * k_, -1);
    for (int64_t c = 0; c < clusters_; ++c) {
      if (offsets(place)[c] == offsets(place)[c + 1]) continue;
      const int32_t* source = forward_.indices + first + c * k_;
      for (int64_t t = 0; t < k_ && source[t] != -1; ++t) lists[c * k_ + t] = source[t];
    }
    const Status status = sort_by_label(lists, clusters_ * k_, real_keys(place), "indices", first,
                                        slot_offsets_ + place * (shape_.key_length + 1),
                                        slots_ + place * clusters_ * k_);
    if (!status.ok()) context_.fail(status);
  }

  ClusterTerms terms_of(int64_t place, int64_t cluster, int64_t first_cluster) const {
    const int64_t sequence = first_ + place;
    const int64_t row = place * clusters_ + cluster;
    const int64_t slot = place * chunk_slots_ + (cluster - first_cluster) * k_;
    ClusterTerms terms;
    terms.batch = sequence / shape_.heads;
    terms.head = sequence % shape_.heads;
    terms.members = order(place) + offsets(place)[cluster];
    terms.count = offsets(place)[cluster + 1] - offsets(place)[cluster];
    terms.top_keys = lists_ + row * k_;
    terms.mean = groups_.means + (sequence * clusters_ + cluster) * shape_.head_dim;
    terms.gradient = gradients_ + row * shape_.value_dim;
    terms.value = forward_.cluster_values + (sequence * clusters_ + cluster) * shape_.value_dim;
    terms.maximum = maximum_[row];
    terms.key_rows = key_rows_ + slot * top_keys_.padded_dim();
    terms.value_rows = value_rows_ + slot * top_keys_.padded_value_dim();
    terms.offset = offset_ + row;
    terms.change = change_ + row;
    return terms;
  }

  /// One chunk of the clusters of every sequence.
  Status differentiate_chunk(int64_t chunk) {
    const int64_t blocks = divide_up(chunk_clusters(shape_.key_length), kClustersPerTask);
    const double operations = 2.0 * static_cast<double>(count_ * shape_.query_length * k_) *
                              static_cast<double>(3 * shape_.head_dim + 2 * shape_.value_dim);
    return context_.parallel(
        count_ * blocks,
        [&](int64_t task, int worker) {
          const int64_t place = task / blocks;
          const int64_t size = chunk_clusters(real_keys(place));
          const int64_t begin = chunk * size + task % blocks * kClustersPerTask;
          const int64_t end =
              std::min({begin + kClustersPerTask, (chunk + 1) * size, used_clusters(place)});
          bool finite = true;
          for (int64_t c = begin; c < end && !context_.cancelled(); ++c) {
            const ClusterTerms terms = terms_of(place, c, chunk * size);
            const ClusterTerms next = terms_of(place, std::min(c + 1, end - 1), chunk * size);
            if (terms.count > 0) {
              finite &= top_keys_.run(terms, c + 1 < end ? &next : nullptr, worker);
            }
          }
          if (!finite) context_.mark_non_finite();
        },
        operations);
  }

  /// Adds the rows of a chunk that is not the last one of its sequence to dk and dv.
  Status add_chunk(int64_t chunk) {
    const int64_t blocks = divide_up(shape_.key_length, kKeysPerTask);
    return context_.parallel(
        count_ * blocks,
        [&](int64_t task, int) {
          const int64_t place = task / blocks;
          if (chunk + 1 >= chunks_of(place)) return;
          const int64_t first = task % blocks * kKeysPerTask;
          const int64_t last = std::min(first + kKeysPerTask, real_keys(place));
          const int64_t size = chunk_clusters(real_keys(place)) * k_;
          const AttendingRows rows = rows_of(place, chunk * size);
          if (chunk == 0) key_tiles_.clear(rows, first, last);
          if (!key_tiles_.add_selected(rows, first, last, chunk * size, (chunk + 1) * size)) {
            context_.mark_non_finite();
          }
        },
        static_cast<double>(count_ * chunk_slots_ * (shape_.head_dim + shape_.value_dim)));
  }

  // ---- the attention of the mean queries --------------------------------------------------------

  AttendingRows rows_of(int64_t place, int64_t first_slot) const {
    const int64_t sequence = first_ + place;
    AttendingRows rows;
    rows.batch = sequence / shape_.heads;
    rows.head = sequence % shape_.heads;
    rows.rows = used_clusters(place);
    rows.query = groups_.means + sequence * clusters_ * shape_.head_dim;
    rows.query_stride = shape_.head_dim;
    rows.gradient = gradients_ + place * clusters_ * shape_.value_dim;
    rows.gradient_stride = shape_.value_dim;
    rows.maximum = maximum_ + place * clusters_;
    rows.offset = offset_ + place * clusters_;
    rows.keys = real_keys(place);
    if (k_ == 0) return rows;
    rows.selected.offsets = slot_offsets_ + place * (shape_.key_length + 1);
    rows.selected.slots = slots_ + place * clusters_ * k_;
    rows.selected.k = k_;
    rows.selected.change = change_ + place * clusters_;
    rows.selected.first_slot = first_slot;
    rows.selected.key_stride = top_keys_.padded_dim();
    rows.selected.value_stride = top_keys_.padded_value_dim();
    rows.selected.key_rows = key_rows_ + place * chunk_slots_ * rows.selected.key_stride;
    rows.selected.value_rows = value_rows_ + place * chunk_slots_ * rows.selected.value_stride;
    return rows;
  }

  /// The first pair (cluster, top key) whose rows are not in the gradients yet.
  int64_t last_chunk_slot(int64_t place) const {
    if (k_ == 0 || used_clusters(place) == 0) return 0;
    return (chunks_of(place) - 1) * chunk_clusters(real_keys(place)) * k_;
  }

  Status differentiate_means() {
    const double operations = 2.0 * static_cast<double>(count_ * clusters_ * shape_.key_length) *
                              static_cast<double>(3 * shape_.head_dim + 2 * shape_.value_dim);
    return context_.parallel(
        count_ * key_tiles_.parts(),
        [&](int64_t task, int worker) {
          const int64_t place = task / key_tiles_.parts();
          key_tiles_.pass(rows_of(place, last_chunk_slot(place)), place, task % key_tiles_.parts(),
                          worker, context_);
        },
        operations);
  }

  // ---- queries ----------------------------------------------------------------------------------

  Status write_queries() {
    const int64_t blocks = divide_up(clusters_, kClustersPerTask);
    CA_RETURN_IF_ERROR(context_.parallel(
        count_ * blocks,
        [&](int64_t task, int) {
          const int64_t place = task / blocks;
          const AttendingRows rows = rows_of(place, 0);
          const int64_t begin = task % blocks * kClustersPerTask;
          for (int64_t c = begin; c < std::min(begin + kClustersPerTask, rows.rows); ++c) {
            const int64_t members = offsets(place)[c + 1] - offsets(place)[c];
            float* row = mean_gradients_ + (place * clusters_ + c) * shape_.head_dim;
            if (members == 0) continue;
            key_tiles_.total(rows, place, c, row);
            for (int64_t d = 0; d < shape_.head_dim; ++d) row[d] /= static_cast<float>(members);
          }
        },
        static_cast<double>(count_ * key_tiles_.parts() * clusters_ * shape_.head_dim)));
    const int64_t chunks = divide_up(shape_.query_length, kQueriesPerTask);
    return context_.parallel(
        count_ * chunks,
        [&](int64_t task, int) { write_chunk(task / chunks, task % chunks * kQueriesPerTask); },
        static_cast<double>(count_ * shape_.query_length * shape_.head_dim));
  }

  void write_chunk(int64_t place, int64_t begin) {
    const int64_t batch = (first_ + place) / shape_.heads;
    const int64_t head = (first_ + place) % shape_.heads;
    const int32_t* labels = groups_.labels + (first_ + place) * shape_.query_length;
    bool finite = true;
    for (int64_t i = begin; i < std::min(begin + kQueriesPerTask, shape_.query_length); ++i) {
      float* row = problem_.gradients.query.row(batch, head, i);
      if (labels[i] < 0) {
        std::fill_n(row, shape_.head_dim, 0.0f);
        continue;
      }
      const float* mean = mean_gradients_ + (place * clusters_ + labels[i]) * shape_.head_dim;
      if (k_ == 0) {
        std::copy_n(mean, shape_.head_dim, row);
      } else {
        for (int64_t d = 0; d < shape_.head_dim; ++d) row[d] += mean[d];
      }
      finite = all_finite(row, shape_.head_dim) && finite;
    }
    if (!finite) context_.mark_non_finite();
  }

  const ClusteredAttentionGradientProblem& problem_;
  const ClusteredAttentionProblem& forward_;
  const AttentionShape& shape_;
  const int64_t clusters_;
  const int64_t k_;
  Context& context_;
  QueryGroups groups_;
  KeyTileGradient key_tiles_;
  TopKeyGradient top_keys_;
  int64_t first_ = 0;  // of the sequences at work
  int64_t count_ = 0;  // of them
  int64_t chunk_slots_ = 0;
  // Of each sequence at work:
  float* gradients_ = nullptr;       // (C,E): G
  float* mean_gradients_ = nullptr;  // (C,D): dq̄ / n
  float* maximum_ = nullptr;         // (C): log-sum-exp, base 2
  float* offset_ = nullptr;          // (C): delta
  float* change_ = nullptr;          // (C): mu
  int32_t* lists_ = nullptr;         // (C,k): T_j; -1 past its end and for empty clusters
  int64_t* slot_offsets_ = nullptr;  // (S+1)
  int64_t* slots_ = nullptr;         // (C*k): pairs by key
  float* key_rows_ = nullptr;        // (chunk_slots, padded D)
  float* value_rows_ = nullptr;      // (chunk_slots, padded E)
};

}  // namespace

Status clustered_attention_gradient(const ClusteredAttentionGradientProblem& problem,
                                    Context& context) {
  return ClusteredGradientKernel(problem, context).run();
}

}  // namespace cluster_attention::kernels
