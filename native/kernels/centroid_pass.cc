#include "native/kernels/centroid_pass.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "native/core/order.h"
#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/attention.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Each part keeps a state and candidates per cluster: more parts would take more memory than the
/// inputs.
constexpr int64_t kMaximumParts = 16;

/// Keys of one part: the keys of a sequence are cut into parts by their number alone, so that the
/// sums are the same for every thread count; the parts are merged in order.
int64_t keys_per_part(int64_t keys) {
  return std::max<int64_t>(1024, round_up(divide_up(keys, kMaximumParts), kKeyBlock));
}

/// The most parts that a sequence of at most `keys` keys is cut into.
int64_t parts_of(int64_t keys) {
  return std::clamp<int64_t>(divide_up(keys, keys_per_part(0)), 1, kMaximumParts);
}

class CentroidPassKernel {
 public:
  CentroidPassKernel(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                     Context& context, CentroidPass& pass)
      : problem_(problem),
        shape_(problem.inputs.shape),
        groups_(groups),
        context_(context),
        pass_(pass),
        simd_(simd()),
        tiles_(divide_up(std::min(problem.clusters, shape_.query_length), simd_.lanes)),
        parts_(parts_of(shape_.key_length)),
        limit_(problem.top_k + problem.top_k / 4 + 4),
        joint_capacity_(2 * problem.top_k + 32),
        capacity_(problem.top_k > 0
                      ? std::min(joint_capacity_, keys_per_part(shape_.key_length) + 1)
                      : 0) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    const int64_t sequences = shape_.batch * shape_.heads;
    const double operations = 2.0 * sequences * problem_.clusters * shape_.key_length *
                              (shape_.head_dim + shape_.value_dim);
    return context_.parallel(
        sequences * tiles_ * parts_,
        [&](int64_t task, int worker) {
          // Tiles that read the same keys follow each other: the keys stay in the cache.
          const int64_t tile = task / (tiles_ * parts_) * tiles_ + task % tiles_;
          attend(tile * parts_ + task / tiles_ % parts_, worker);
          // Whoever ends a tile's last part joins all of them, in order: nobody waits.
          if (ended_parts_[tile].fetch_add(1, std::memory_order_acq_rel) + 1 == parts_) {
            merge(tile, worker);
          }
        },
        operations);
  }

 private:
  /// Clusters of one tile: active clusters [range.begin, range.end) of a sequence, balanced over
  /// the sequence's tiles in whole vectors.
  struct Tile {
    int64_t sequence;
    Range range;
    const int32_t* clusters;  // (range.size()): their numbers
  };

  Tile tile_of(int64_t tile) const {
    const int64_t sequence = tile / tiles_;
    const int64_t active = groups_.active_count[sequence];
    const int64_t vectors = divide_up(active, simd_.width);
    const int64_t used = divide_up(active, simd_.lanes);
    Range range;
    if (tile % tiles_ < used) {
      const Range part = split(vectors, used, tile % tiles_);
      range = {part.begin * simd_.width, std::min(part.end * simd_.width, active)};
    }
    return {sequence, range, groups_.active + sequence * problem_.clusters + range.begin};
  }

  int64_t real_keys(int64_t sequence) const {
    return real_length(problem_.inputs.key_lengths, sequence / shape_.heads, shape_.key_length);
  }

  Status allocate() {
    Workspace& workspace = context_.workspace();
    const int64_t clusters = shape_.batch * shape_.heads * problem_.clusters;
    const int64_t partials = shape_.batch * shape_.heads * tiles_ * parts_;
    scratch_size_ = AttendScratch::scratch_size(simd_, shape_.head_dim);
    state_size_ = AttendScratch::state_size(simd_, shape_.value_dim);
    pass_.values = workspace.allocate<float>(clusters * shape_.value_dim);
    pass_.maximum = workspace.allocate<float>(clusters);
    pass_.sum = workspace.allocate<float>(clusters);
    pass_.top_scores = workspace.allocate<float>(clusters * problem_.top_k);
    pass_.top_keys = workspace.allocate<int32_t>(clusters * problem_.top_k);
    scratch_ = workspace.allocate<float>(context_.workers() * scratch_size_);
    states_ = workspace.allocate<float>(partials * state_size_);
    thresholds_ = workspace.allocate<float>(partials * simd_.lanes);
    counts_ = workspace.allocate<int32_t>(partials * simd_.lanes);
    candidates_ = workspace.allocate<Candidate>(partials * simd_.lanes * capacity_);
    shared_thresholds_ = workspace.allocate_zeroed<std::atomic<uint32_t>>(
        problem_.top_k > 0 ? partials / parts_ * simd_.lanes : 0);
    ended_parts_ = workspace.allocate_zeroed<std::atomic<int64_t>>(partials / parts_);
    joint_candidates_ = workspace.allocate<Candidate>(context_.workers() * joint_capacity_);
    const bool complete = pass_.values != nullptr && pass_.maximum != nullptr &&
                          pass_.sum != nullptr && pass_.top_scores != nullptr &&
                          pass_.top_keys != nullptr && scratch_ != nullptr && states_ != nullptr &&
                          thresholds_ != nullptr && counts_ != nullptr && candidates_ != nullptr &&
                          joint_candidates_ != nullptr && ended_parts_ != nullptr &&
                          shared_thresholds_ != nullptr;
    return complete ? Status::success() : Status::out_of_memory();
  }

  /// State of one part of one tile, with the scratch of a worker.
  AttendScratch partial(int64_t index, int worker) const {
    return AttendScratch::carve(scratch_ + worker * scratch_size_, states_ + index * state_size_,
                                simd_, shape_.head_dim);
  }

  void attend(int64_t task, int worker) {
    // mean queries: (range.size(), D) in lanes; key part: (keys, D); value part: (keys, E)
    const Tile tile = tile_of(task / parts_);
    const int64_t size = keys_per_part(real_keys(tile.sequence));
    const int64_t first = task % parts_ * size;
    const int64_t keys = std::min(size, real_keys(tile.sequence) - first);
    if (tile.range.size() == 0 || (keys <= 0 && first > 0)) return;

    const AttentionInputs& inputs = problem_.inputs;
    const int64_t batch = tile.sequence / shape_.heads;
    const int64_t head = tile.sequence % shape_.heads;
    const AttendScratch scratch = partial(task, worker);
    scratch.reset(simd_, shape_.value_dim);
    scratch.pack_queries(simd_, groups_.means + tile.sequence * problem_.clusters * shape_.head_dim,
                         shape_.head_dim, tile.clusters, tile.range.size(), shape_.head_dim,
                         inputs.scale);
    AttendTile block = scratch.tile(tile.range.size(), inputs.scale);
    block.key = inputs.key.row(batch, head, first);
    block.key_stride = inputs.key.row_stride;
    block.value = inputs.value.row(batch, head, first);
    block.value_stride = inputs.value.row_stride;
    block.keys = keys;
    block.head_dim = shape_.head_dim;
    block.value_dim = shape_.value_dim;
    TileSelector selector;
    if (problem_.top_k > 0) {
      selector = start_selection(task, tile.range.size(), first);
      block.selector = &selector;
    }
    simd_.attend(block);
    if (problem_.top_k > 0) share_thresholds(task, tile.range.size(), selector);
  }

  TileSelector start_selection(int64_t task, int64_t columns, int64_t first_key) const {
    TileSelector selector;
    selector.k = problem_.top_k;
    selector.limit = limit_;
    selector.capacity = capacity_;
    selector.sign = problem_.inputs.scale < 0.0f ? -1.0f : 1.0f;  // pack_queries has negated
    selector.first_key = first_key;
    selector.threshold = thresholds_ + task * simd_.lanes;
    selector.counts = counts_ + task * simd_.lanes;
    selector.candidates = candidates_ + task * simd_.lanes * capacity_;
    for (int64_t lane = 0; lane < columns; ++lane) {
      const uint32_t key =
          shared_thresholds_[task / parts_ * simd_.lanes + lane].load(std::memory_order_relaxed);
      selector.threshold[lane] = threshold_below(key);
    }
    std::fill_n(selector.threshold + columns, simd_.lanes - columns,
                std::numeric_limits<float>::infinity());
    std::fill_n(selector.counts, simd_.lanes, 0);
    return selector;
  }

  /// The threshold that another part's k-th best score (an ordered_key, 0 for none) sets: a score
  /// equal to it must still pass, since its index may be the lower one.
  static float threshold_below(uint32_t key) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float kth = value_of_key(key);
    if (key == 0 || kth == -kInfinity) return std::numeric_limits<float>::quiet_NaN();
    return std::nextafter(kth, -kInfinity);
  }

  /// Prunes a part's candidates and tells the parts to come what their k-th best must beat. Which
  /// parts hear of it varies from run to run, but only candidates that cannot be among the k best
  /// of all parts are dropped: the selection stays the same.
  void share_thresholds(int64_t task, int64_t columns, const TileSelector& selector) const {
    for (int64_t lane = 0; lane < columns; ++lane) {
      if (selector.counts[lane] < selector.k) continue;
      const float kth = simd_.thin_candidates(selector.candidates + lane * selector.capacity,
                                              &selector.counts[lane], selector.k, selector.limit);
      std::atomic<uint32_t>& shared = shared_thresholds_[task / parts_ * simd_.lanes + lane];
      const uint32_t key = ordered_key(kth);
      uint32_t known = shared.load(std::memory_order_relaxed);
      while (known < key && !shared.compare_exchange_weak(known, key, std::memory_order_relaxed)) {
      }
    }
  }

  /// Joins the parts of one tile, in order, and writes the rows of its clusters.
  void merge(int64_t task, int worker) {
    const Tile tile = tile_of(task);
    const int64_t columns = tile.range.size();
    if (columns == 0) return;
    const int64_t keys = real_keys(tile.sequence);
    const int64_t parts = std::max<int64_t>(1, divide_up(keys, keys_per_part(keys)));
    const AttendScratch joint = partial(task * parts_, worker);
    for (int64_t part = 1; part < parts; ++part) {
      joint.join(partial(task * parts_ + part, worker), simd_, columns, shape_.value_dim);
    }
    float normalizer[kMaximumLanes];
    bool finite = true;
    for (int64_t lane = 0; lane < columns; ++lane) {
      const SoftmaxState state{joint.maximum[lane], joint.sum[lane]};
      const int64_t cluster = tile.sequence * problem_.clusters + tile.clusters[lane];
      pass_.maximum[cluster] = state.maximum;
      pass_.sum[cluster] = state.sum;
      normalizer[lane] = state.normalizer();
      finite = finite && joint.minimum[lane] != -std::numeric_limits<float>::infinity();
      if (problem_.top_k > 0) merge_selection(task, parts, lane, cluster, worker);
    }
    finite &= simd_.unpack(joint.output, columns, shape_.value_dim, normalizer,
                           pass_.values + tile.sequence * problem_.clusters * shape_.value_dim,
                           shape_.value_dim, tile.clusters);
    if (!finite) context_.mark_non_finite();
  }

  /// T_j of one cluster from the candidates of all parts, best first.
  void merge_selection(int64_t task, int64_t parts, int64_t lane, int64_t cluster,
                       int worker) const {
    const int64_t k = problem_.top_k;
    Candidate* best = joint_candidates_ + worker * joint_capacity_;
    int32_t count = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t source = (task * parts_ + part) * simd_.lanes + lane;
      const Candidate* candidates = candidates_ + source * capacity_;
      for (int32_t i = 0; i < counts_[source]; ++i) {
        if (count == joint_capacity_) simd_.thin_candidates(best, &count, k, limit_);
        best[count++] = candidates[i];
      }
    }
    if (count > limit_) simd_.thin_candidates(best, &count, k, limit_);
    std::sort(best, best + count, std::greater<Candidate>());
    for (int64_t i = 0; i < k; ++i) {
      pass_.top_keys[cluster * k + i] = i < count ? candidate_index(best[i]) : -1;
      pass_.top_scores[cluster * k + i] = i < count ? candidate_score(best[i]) : 0.0f;
    }
  }

  const ClusteredAttentionProblem& problem_;
  const AttentionShape& shape_;
  const QueryGroups& groups_;
  Context& context_;
  CentroidPass& pass_;
  const Simd& simd_;
  const int64_t tiles_;           // of clusters, per sequence
  const int64_t parts_;           // of keys, per sequence
  const int64_t limit_;           // of what thinning leaves of a list of candidates
  const int64_t joint_capacity_;  // of a cluster's candidates while parts are merged
  const int64_t capacity_;        // of a lane's candidates in one part
  int64_t scratch_size_ = 0;
  int64_t state_size_ = 0;
  float* scratch_ = nullptr;                            // (workers, scratch_size)
  float* states_ = nullptr;                             // (B,H,tiles,parts, state_size)
  float* thresholds_ = nullptr;                         // (B,H,tiles,parts, lanes)
  int32_t* counts_ = nullptr;                           // (B,H,tiles,parts, lanes)
  Candidate* candidates_ = nullptr;                     // (B,H,tiles,parts, lanes, capacity)
  Candidate* joint_candidates_ = nullptr;               // (workers, joint_capacity)
  std::atomic<int64_t>* ended_parts_ = nullptr;         // (B,H,tiles)
  std::atomic<uint32_t>* shared_thresholds_ = nullptr;  // (B,H,tiles, lanes): ordered_key, 0: none
};

}  // namespace

Status centroid_pass(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                     Context& context, CentroidPass& pass) {
  return CentroidPassKernel(problem, groups, context, pass).run();
}

}  // namespace cluster_attention::kernels
