#include "native/kernels/clustered_attention.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/blocked_product.h"
#include "native/kernels/centroid_pass.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"
#include "native/kernels/query_groups.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Up to `lanes` queries of one cluster.
struct MemberTile {
  int64_t sequence;
  int32_t cluster;
  int32_t queries;
  const int32_t* members;  // (queries): positions in the sequence
};

/// Consecutive tiles of one task: while one is improved, the memory fetches the rows of the next.
constexpr int64_t kTilesPerTask = 8;
/// Queries to which one task hands out the values of their clusters.
constexpr int64_t kQueriesPerTask = 512;

class ClusteredAttentionKernel {
 public:
  ClusteredAttentionKernel(const ClusteredAttentionProblem& problem, Context& context)
      : problem_(problem), shape_(problem.inputs.shape), context_(context), simd_(simd()) {}

  Status run() {
    CA_RETURN_IF_ERROR(group_queries(problem_, context_, groups_));
    CA_RETURN_IF_ERROR(
        average_queries(problem_, groups_, {0, shape_.batch * shape_.heads}, context_));
    CA_RETURN_IF_ERROR(centroid_pass(problem_, groups_, context_, pass_));
    if (problem_.top_k > 0) {
      clear_unlabelled();
      CA_RETURN_IF_ERROR(list_tiles());
      CA_RETURN_IF_ERROR(improve());
    } else {
      CA_RETURN_IF_ERROR(broadcast());
    }
    write_details();
    return Status::success();
  }

 private:
  /// Cuts the members of every cluster into tiles, the tasks of the last step.
  Status list_tiles() {
    const int64_t sequences = shape_.batch * shape_.heads;
    const int64_t limit = sequences * (std::min(problem_.clusters, shape_.query_length) +
                                       shape_.query_length / simd_.lanes);
    tiles_ = context_.workspace().allocate<MemberTile>(limit);
    if (tiles_ == nullptr) return Status::out_of_memory();
    for (int64_t s = 0; s < sequences; ++s) {
      const int32_t* offsets = groups_.offsets + s * (problem_.clusters + 1);
      const int32_t* order = groups_.order + s * shape_.query_length;
      const int32_t* active = groups_.active + s * problem_.clusters;
      for (int32_t a = 0; a < groups_.active_count[s]; ++a) {
        const int32_t cluster = active[a];
        for (int64_t first = offsets[cluster]; first < offsets[cluster + 1]; first += simd_.lanes) {
          const int64_t queries = std::min<int64_t>(simd_.lanes, offsets[cluster + 1] - first);
          tiles_[tile_count_++] = {s, cluster, static_cast<int32_t>(queries), order + first};
        }
      }
    }
    return Status::success();
  }

  /// Queries in no cluster, padding among them: output 0.
  void clear_unlabelled() {
    for (int64_t s = 0; s < shape_.batch * shape_.heads; ++s) {
      const int32_t* labels = groups_.labels + s * shape_.query_length;
      for (int64_t i = 0; i < shape_.query_length; ++i) {
        if (labels[i] >= 0) continue;
        std::fill_n(problem_.output.row(s / shape_.heads, s % shape_.heads, i), shape_.value_dim,
                    0.0f);
      }
    }
  }

  /// Clustered attention: every query takes V^c of its cluster, one in no cluster 0.
  Status broadcast() {
    const int64_t chunks = divide_up(shape_.query_length, kQueriesPerTask);
    const int64_t sequences = shape_.batch * shape_.heads;
    return context_.parallel(
        sequences * chunks,
        [&](int64_t task, int) {
          const int64_t s = task / chunks;
          const int64_t begin = task % chunks * kQueriesPerTask;
          const int32_t* labels = groups_.labels + s * shape_.query_length;
          const float* values = pass_.values + s * problem_.clusters * shape_.value_dim;
          for (int64_t i = begin; i < std::min(begin + kQueriesPerTask, shape_.query_length); ++i) {
            float* row = problem_.output.row(s / shape_.heads, s % shape_.heads, i);
            if (labels[i] < 0) {
              std::fill_n(row, shape_.value_dim, 0.0f);
            } else {
              std::copy_n(values + labels[i] * shape_.value_dim, shape_.value_dim, row);
            }
          }
        },
        static_cast<double>(sequences * shape_.query_length * shape_.value_dim));
  }

  /// Scratch of one worker while it improves a tile.
  struct Scratch {
    float* query;    // (lanes, D): the tile's queries
    float* weights;  // (lanes, weight_stride): k of each query, and 1 for the base
    float* output;   // (lanes, padded E)
    float* key;      // (weight_stride / lanes, D, lanes): T_j, `lanes` keys at a time in lanes
    float* value;    // (k + 1, padded E): v_t, and at last the base, V^c - sum_t A^c_t v_t
    float* mass;     // (k): A^c at T_j
  };

  /// What stands in the scratch of the keys T_j of a cluster.
  struct Selection {
    int64_t keys = 0;   // at most k
    float mass = 0.0f;  // m̂_j
  };

  Scratch carve(int worker) const {
    Scratch scratch;
    scratch.query = scratch_ + worker * scratch_size_;
    scratch.weights = scratch.query + simd_.lanes * round_up(shape_.head_dim, simd_.width);
    scratch.output = scratch.weights + simd_.lanes * weight_stride_;
    scratch.key = scratch.output + simd_.lanes * padded_value_dim_;
    scratch.value = scratch.key + weight_stride_ * shape_.head_dim;
    scratch.mass = scratch.value + (problem_.top_k + 1) * padded_value_dim_;
    return scratch;
  }

  Status improve() {
    const int64_t k = problem_.top_k;
    padded_value_dim_ = round_up(shape_.value_dim, simd_.width);
    weight_stride_ = round_up(k + 1, simd_.lanes);
    scratch_size_ = round_up(simd_.lanes * (round_up(shape_.head_dim, simd_.width) +
                                            weight_stride_ + padded_value_dim_) +
                                 weight_stride_ * shape_.head_dim + (k + 1) * padded_value_dim_ + k,
                             16);
    scratch_ = context_.workspace().allocate<float>(scratch_size_ * context_.workers());
    if (scratch_ == nullptr) return Status::out_of_memory();
    const double operations = 2.0 * shape_.batch * shape_.heads * shape_.query_length * k *
                              (shape_.head_dim + shape_.value_dim);
    const auto improve_tiles = [&](int64_t task, int worker) {
      const Scratch scratch = carve(worker);
      const int64_t begin = task * kTilesPerTask;
      const int64_t end = std::min(tile_count_, begin + kTilesPerTask);
      Selection selection;
      for (int64_t t = begin; t < end; ++t) {
        if (t + 1 < end) prefetch_members(tiles_[t + 1]);
        if (t == begin || !same_cluster(tiles_[t - 1], tiles_[t])) {
          selection = gather(tiles_[t], scratch);
        }
        if (t + 1 < end && !same_cluster(tiles_[t], tiles_[t + 1])) prefetch_keys(tiles_[t + 1]);
        improve_tile(tiles_[t], selection, scratch);
      }
    };
    return context_.parallel(divide_up(tile_count_, kTilesPerTask), improve_tiles, operations);
  }

  static bool same_cluster(const MemberTile& a, const MemberTile& b) {
    return a.sequence == b.sequence && a.cluster == b.cluster;
  }

  [[gnu::always_inline]] void prefetch_members(const MemberTile& tile) const {
    const int64_t batch = tile.sequence / shape_.heads;
    const int64_t head = tile.sequence % shape_.heads;
    for (int32_t i = 0; i < tile.queries; ++i) {
      prefetch_row(problem_.inputs.query.row(batch, head, tile.members[i]), shape_.head_dim);
      prefetch_row(problem_.output.row(batch, head, tile.members[i]), shape_.value_dim);
    }
  }

  [[gnu::always_inline]] void prefetch_keys(const MemberTile& tile) const {
    const int64_t batch = tile.sequence / shape_.heads;
    const int64_t head = tile.sequence % shape_.heads;
    const AttentionInputs& inputs = problem_.inputs;
    const int32_t* top_keys =
        pass_.top_keys + (tile.sequence * problem_.clusters + tile.cluster) * problem_.top_k;
    for (int64_t t = 0; t < problem_.top_k && top_keys[t] >= 0; ++t) {
      prefetch_row(inputs.key.row(batch, head, top_keys[t]), shape_.head_dim);
      prefetch_row(inputs.value.row(batch, head, top_keys[t]), shape_.value_dim);
    }
  }

  void improve_tile(const MemberTile& tile, const Selection& selection, const Scratch& scratch) {
    // query: (queries, D); T_j: key (keys, D) in lanes, value (keys, E) -> output: (queries, E)
    const int64_t batch = tile.sequence / shape_.heads;
    const int64_t head = tile.sequence % shape_.heads;
    const int64_t dim = shape_.head_dim;
    const int64_t keys = selection.keys;
    for (int32_t i = 0; i < tile.queries; ++i) {
      std::copy_n(problem_.inputs.query.row(batch, head, tile.members[i]), dim,
                  scratch.query + i * dim);
    }
    for (int64_t t = 0; t < keys; t += simd_.lanes) {
      simd_.multiply(scratch.query, dim, 1, tile.queries, dim, scratch.key + t * dim, simd_.lanes,
                     std::min(simd_.lanes, keys - t), scratch.weights + t, weight_stride_, false);
    }
    bool finite = simd_.softmax_lanes(scratch.weights, tile.queries, weight_stride_, keys,
                                      problem_.inputs.scale * kLog2E, selection.mass);
    for (int32_t i = 0; i < tile.queries; ++i) {
      scratch.weights[i * weight_stride_ + keys] = 1.0f;  // the base enters once
    }
    multiply_in_blocks(scratch.weights, weight_stride_, 1, tile.queries, keys + 1, scratch.value,
                       padded_value_dim_, shape_.value_dim, scratch.output, padded_value_dim_,
                       false);
    for (int32_t i = 0; i < tile.queries; ++i) {
      const float* row = scratch.output + i * padded_value_dim_;
      finite = all_finite(row, shape_.value_dim) && finite;
      std::copy_n(row, shape_.value_dim, problem_.output.row(batch, head, tile.members[i]));
    }
    if (!finite) context_.mark_non_finite();
  }

  /// Packs the keys of T_j, copies their values side by side, and adds the base to these.
  Selection gather(const MemberTile& tile, const Scratch& scratch) const {
    const int64_t batch = tile.sequence / shape_.heads;
    const int64_t head = tile.sequence % shape_.heads;
    const int64_t cluster = tile.sequence * problem_.clusters + tile.cluster;
    const int32_t* top_keys = pass_.top_keys + cluster * problem_.top_k;
    int64_t keys = 0;
    for (; keys < problem_.top_k && top_keys[keys] >= 0; ++keys) {
      float* value = scratch.value + keys * padded_value_dim_;
      std::copy_n(problem_.inputs.value.row(batch, head, top_keys[keys]), shape_.value_dim, value);
      std::fill(value + shape_.value_dim, value + padded_value_dim_, 0.0f);
    }
    const InputRows& key = problem_.inputs.key;
    for (int64_t t = 0; t < keys; t += simd_.lanes) {
      simd_.pack(key.sequence(batch, head), key.row_stride, top_keys + t,
                 std::min(simd_.lanes, keys - t), shape_.head_dim,
                 scratch.key + t * shape_.head_dim);
    }
    return {keys, base_output(tile, keys, scratch)};
  }

  /// Writes the base behind the values and returns m̂_j = sum_t A^c_jt.
  float base_output(const MemberTile& tile, int64_t keys, const Scratch& scratch) const {
    const float scale_log2 = problem_.inputs.scale * kLog2E;
    const int64_t cluster = tile.sequence * problem_.clusters + tile.cluster;
    const float* top_scores = pass_.top_scores + cluster * problem_.top_k;
    std::copy_n(top_scores, keys, scratch.mass);
    simd_.weigh(scratch.mass, keys, scale_log2, pass_.maximum[cluster]);
    double total = 0.0;
    for (int64_t t = 0; t < keys; ++t) {
      scratch.mass[t] = -scratch.mass[t] / pass_.sum[cluster];
      total -= static_cast<double>(scratch.mass[t]);
    }
    float* base = scratch.value + keys * padded_value_dim_;
    std::copy_n(pass_.values + cluster * shape_.value_dim, shape_.value_dim, base);
    std::fill(base + shape_.value_dim, base + padded_value_dim_, 0.0f);
    multiply_in_blocks(scratch.mass, keys, 1, 1, keys, scratch.value, padded_value_dim_,
                       shape_.value_dim, base, padded_value_dim_, true);
    return static_cast<float>(total);
  }

  void write_details() const {
    const int64_t clusters = problem_.clusters;
    const int64_t sequences = shape_.batch * shape_.heads;
    if (problem_.labels != nullptr) {
      std::copy_n(groups_.labels, sequences * shape_.query_length, problem_.labels);
    }
    for (int64_t s = 0; s < sequences; ++s) {
      const int32_t* offsets = groups_.offsets + s * (clusters + 1);
      for (int64_t c = 0; c < clusters; ++c) {
        const int32_t count = offsets[c + 1] - offsets[c];
        const int64_t cluster = s * clusters + c;
        if (problem_.counts != nullptr) problem_.counts[cluster] = count;
        write_state(cluster, count > 0);
        if (problem_.indices == nullptr || problem_.top_k == 0) continue;
        int32_t* indices = problem_.indices + cluster * problem_.top_k;
        if (count > 0) {
          std::copy_n(pass_.top_keys + cluster * problem_.top_k, problem_.top_k, indices);
        } else {
          std::fill_n(indices, problem_.top_k, -1);
        }
      }
    }
  }

  /// What the gradient reads of a cluster.
  void write_state(int64_t cluster, bool has_members) const {
    if (problem_.cluster_values != nullptr) {
      float* values = problem_.cluster_values + cluster * shape_.value_dim;
      if (has_members) {
        std::copy_n(pass_.values + cluster * shape_.value_dim, shape_.value_dim, values);
      } else {
        std::fill_n(values, shape_.value_dim, 0.0f);
      }
    }
    if (problem_.cluster_logsumexp != nullptr) {
      SoftmaxState state;
      if (has_members) state = {pass_.maximum[cluster], pass_.sum[cluster]};
      problem_.cluster_logsumexp[cluster] = state.logsumexp();
    }
  }

  const ClusteredAttentionProblem& problem_;
  const AttentionShape& shape_;
  Context& context_;
  const Simd& simd_;
  QueryGroups groups_;
  CentroidPass pass_;
  MemberTile* tiles_ = nullptr;
  int64_t tile_count_ = 0;
  int64_t padded_value_dim_ = 0;
  int64_t weight_stride_ = 0;  // of a query's weights
  int64_t scratch_size_ = 0;
  float* scratch_ = nullptr;
};

}  // namespace

Status clustered_attention(const ClusteredAttentionProblem& problem, Context& context) {
  return ClusteredAttentionKernel(problem, context).run();
}

}  // namespace cluster_attention::kernels
