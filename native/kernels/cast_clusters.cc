#include "native/kernels/cast_clusters.h"

#include <algorithm>
#include <limits>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/attention.h"
#include "native/kernels/cast_activation.h"
#include "native/kernels/finite.h"
#include "native/kernels/prefetch.h"

namespace cluster_attention::kernels {

namespace {

/// Tiles of queries that share one gather of their cluster's keys and values. More would push their
/// states out of the second-level cache.
constexpr int64_t kTilesPerChunk = 8;

/// A tile of queries with its state.
struct ClusterTile {
  AttendScratch state;
  int64_t columns;
};

/// The surrogate's attention, its logits multiplied by key factors. One query would leave the lanes
/// of a tile empty: its scores are dot products, and the values' elements take the lanes.
struct Summary {
  float* output;  // (padded E)
  SoftmaxState state;
};

/// Rows of up to kKeyBlock members.
struct GatheredRows {
  float* key;         // (kKeyBlock, D)
  float* value;       // (kKeyBlock, E)
  float* key_factor;  // (kKeyBlock), softplus1(-phi)
  uint16_t* packed;   // keys and values as bfloat16, where they are multiplied so; else null
  int64_t count;
};

bool packs_bfloat16(const CastState& state) {
  return state.simd.multiplies_bfloat16 && state.context.bfloat16_operands() &&
         state.problem.activation == Activation::softmax;
}

/// One chunk of the queries of one cluster.
class ClusterChunk {
 public:
  ClusterChunk(const CastState& state, int64_t pair, int64_t cluster, int worker)
      : state_(state),
        problem_(state.problem),
        shape_(state.problem.inputs.shape),
        sequence_(state.sequences[pair / shape_.heads]),
        head_(pair % shape_.heads),
        cluster_(cluster),
        members_(sequence_.members + cluster * problem_.cluster_size),
        size_(sequence_.counts[cluster]),
        laplace_(problem_.activation == Activation::laplace),
        scale_(state.product_scale(size_)) {
    const int64_t lanes = state.simd.lanes;
    float* memory = state.scratch(worker);
    gathered_.key = memory;
    gathered_.value = gathered_.key + kKeyBlock * shape_.head_dim;
    gathered_.key_factor = gathered_.value + kKeyBlock * shape_.value_dim;
    scores_ = gathered_.key_factor + kKeyBlock;
    summary_.output = scores_ + kKeyBlock * lanes;
    tile_memory_ = summary_.output + round_up(shape_.value_dim, state.simd.width);
    const int64_t tiles = kTilesPerChunk * (shape_.head_dim + shape_.value_dim + 3) * lanes;
    gathered_.packed =
        packs_bfloat16(state) ? reinterpret_cast<uint16_t*>(tile_memory_ + tiles) : nullptr;
  }

  /// intra: (kappa, E), inter: (E). The first chunk computes the summary too.
  void run(int64_t chunk, float* intra, float* inter) {
    const int64_t lanes = state_.simd.lanes;
    begin_ = chunk * kTilesPerChunk * lanes;
    end_ = std::min(size_, begin_ + kTilesPerChunk * lanes);
    if (size_ == 0 && chunk == 0) std::fill_n(inter, shape_.value_dim, 0.0f);
    if (begin_ >= end_) return;
    tile_count_ = divide_up(end_ - begin_, lanes);
    std::fill_n(summary_.output, shape_.value_dim, 0.0f);
    for (int64_t first = 0; first < size_ && !state_.context.cancelled(); first += kKeyBlock) {
      gather(first);
      for (int64_t t = 0; t < tile_count_; ++t) {
        if (first == 0) start_tile(t);
        prefetch(first, t);
        advance(tiles_[t]);
      }
      if (chunk == 0) advance_summary();
    }
    if (state_.context.cancelled()) return;
    for (int64_t t = 0; t < tile_count_; ++t) {
      finish(tiles_[t], intra + queries_of(t).begin * shape_.value_dim);
    }
    if (chunk == 0) finish_summary(inter);
  }

 private:
  /// Queries of tile t, as places among the members: the chunk's, balanced in whole vectors.
  Range queries_of(int64_t t) const {
    const int64_t width = state_.simd.width;
    const Range part = split(divide_up(end_ - begin_, width), tile_count_, t);
    return {begin_ + part.begin * width, std::min(begin_ + part.end * width, end_)};
  }

  /// Packs the queries of tile t.
  void start_tile(int64_t t) {
    const int64_t lanes = state_.simd.lanes;
    ClusterTile& tile = tiles_[t];
    float* memory = tile_memory_ + t * (shape_.head_dim + shape_.value_dim + 3) * lanes;
    tile.state.packed_query = memory;
    tile.state.output = memory + shape_.head_dim * lanes;
    tile.state.maximum = tile.state.output + shape_.value_dim * lanes;
    tile.state.sum = tile.state.maximum + lanes;
    tile.state.minimum = tile.state.sum + lanes;
    tile.state.scores = scores_;
    tile.state.reset(state_.simd, shape_.value_dim);
    const InputRows& query = problem_.inputs.query;
    const Range queries = queries_of(t);
    tile.columns = queries.size();
    tile.state.pack_queries(state_.simd, query.sequence(sequence_.batch, head_), query.row_stride,
                            members_ + queries.begin, tile.columns, shape_.head_dim,
                            laplace_ ? 1.0f : scale_);
  }

  /// While tile t meets the block of members at `first`: asks for the queries of the next tile if
  /// it has yet to be packed, and for this tile's share of the next block of keys and values.
  [[gnu::always_inline]] void prefetch(int64_t first, int64_t t) const {
    if (first == 0 && t + 1 < tile_count_) {
      const Range queries = queries_of(t + 1);
      for (int64_t i = queries.begin; i < queries.end; ++i) {
        prefetch_row(problem_.inputs.query.row(sequence_.batch, head_, members_[i]),
                     shape_.head_dim);
      }
    }
    const int64_t next = first + kKeyBlock;
    const Range share = split(std::clamp<int64_t>(size_ - next, 0, kKeyBlock), tile_count_, t);
    for (int64_t i = next + share.begin; i < next + share.end; ++i) {
      prefetch_row(problem_.inputs.key.row(sequence_.batch, head_, members_[i]), shape_.head_dim);
      prefetch_row(problem_.inputs.value.row(sequence_.batch, head_, members_[i]),
                   shape_.value_dim);
    }
  }

  void gather(int64_t first) {
    const InputRows& key = problem_.inputs.key;
    const InputRows& value = problem_.inputs.value;
    gathered_.count = std::min(kKeyBlock, size_ - first);
    for (int64_t i = 0; i < gathered_.count; ++i) {
      const int64_t token = members_[first + i];
      std::copy_n(key.row(sequence_.batch, head_, token), shape_.head_dim,
                  gathered_.key + i * shape_.head_dim);
      std::copy_n(value.row(sequence_.batch, head_, token), shape_.value_dim,
                  gathered_.value + i * shape_.value_dim);
      gathered_.key_factor[i] = sequence_.key_factor[token];
    }
    if (gathered_.packed == nullptr) return;
    AttendTile members;
    set_keys(members);
    state_.simd.pack_bfloat16(members, gathered_.packed);
  }

  /// The gathered members as keys.
  void set_keys(AttendTile& tile) const {
    tile.key = gathered_.key;
    tile.key_stride = shape_.head_dim;
    tile.value = gathered_.value;
    tile.value_stride = shape_.value_dim;
    tile.keys = gathered_.count;
    tile.head_dim = shape_.head_dim;
    tile.value_dim = shape_.value_dim;
    tile.packed = gathered_.packed;
  }

  /// Adds the gathered members to what a tile has seen.
  void advance(const ClusterTile& tile) const {
    if (laplace_) {
      advance_laplace(tile);
      return;
    }
    AttendTile block = tile.state.tile(tile.columns, scale_);
    set_keys(block);
    block.bfloat16 = state_.context.bfloat16_operands();
    state_.simd.attend(block);
  }

  void advance_laplace(const ClusterTile& tile) const {
    const int64_t lanes = state_.simd.lanes;
    state_.simd.multiply(gathered_.key, shape_.head_dim, 1, gathered_.count, shape_.head_dim,
                         tile.state.packed_query, lanes, tile.columns, scores_, lanes, false);
    if (!laplace_rows(state_.simd, scores_, gathered_.count, tile.columns, scale_)) {
      state_.context.mark_non_finite();
    }
    state_.simd.multiply(gathered_.value, 1, shape_.value_dim, shape_.value_dim, gathered_.count,
                         scores_, lanes, tile.columns, tile.state.output, lanes, true);
  }

  /// Adds the gathered members to the summary.
  void advance_summary() {
    const int64_t lanes = state_.simd.lanes;
    const int64_t count = gathered_.count;
    const float* surrogate =
        problem_.surrogates + (head_ * problem_.clusters + cluster_) * shape_.head_dim;
    for (int64_t i = 0; i < count; ++i) {
      scores_[i] = gathered_.key_factor[i] *
                   state_.simd.dot(surrogate, gathered_.key + i * shape_.head_dim, shape_.head_dim);
    }
    bool finite = all_finite(scores_, count);
    if (laplace_) {
      // A row of scores is read as rows of whole tiles of lanes, and a shorter one.
      const int64_t whole = count / lanes;
      finite &= laplace_rows(state_.simd, scores_, whole, lanes, scale_);
      finite &= laplace_rows(state_.simd, scores_ + whole * lanes, 1, count % lanes, scale_);
    } else {
      weigh_summary(count);
    }
    if (!finite) state_.context.mark_non_finite();
    state_.simd.multiply(scores_, count, 1, 1, count, gathered_.value, shape_.value_dim,
                         shape_.value_dim, summary_.output, shape_.value_dim, true);
  }

  /// Scores -> weights relative to the new maximum, to which the sums so far shrink.
  void weigh_summary(int64_t count) {
    const float scale_log2 = scale_ * kLog2E;
    SoftmaxState block;
    for (int64_t i = 0; i < count; ++i) {
      block.maximum = std::max(block.maximum, scores_[i] * scale_log2);
    }
    block.maximum = std::max(block.maximum, summary_.state.maximum);
    state_.simd.weigh(scores_, count, scale_log2, block.maximum);
    for (int64_t i = 0; i < count; ++i) block.sum += scores_[i];
    const float shrink = summary_.state.merge(block).mine;
    for (int64_t e = 0; e < shape_.value_dim; ++e) summary_.output[e] *= shrink;
  }

  void finish_summary(float* row) const {
    const float factor = laplace_ ? 1.0f : summary_.state.normalizer();
    for (int64_t e = 0; e < shape_.value_dim; ++e) row[e] = summary_.output[e] * factor;
    if (!all_finite(row, shape_.value_dim)) state_.context.mark_non_finite();
  }

  void finish(const ClusterTile& tile, float* rows) const {
    float normalizer[kMaximumLanes];
    bool finite = true;
    for (int64_t i = 0; i < tile.columns; ++i) {
      normalizer[i] = SoftmaxState{tile.state.maximum[i], tile.state.sum[i]}.normalizer();
      finite = finite && tile.state.minimum[i] != -std::numeric_limits<float>::infinity();
    }
    finite &= state_.simd.unpack(tile.state.output, tile.columns, shape_.value_dim,
                                 laplace_ ? nullptr : normalizer, rows, shape_.value_dim, nullptr);
    if (!finite) state_.context.mark_non_finite();
  }

  const CastState& state_;
  const CastAttentionProblem& problem_;
  const AttentionShape& shape_;
  const CastSequence& sequence_;
  const int64_t head_;
  const int64_t cluster_;
  const int32_t* members_;
  const int64_t size_;
  const bool laplace_;
  const float scale_;

  int64_t begin_ = 0;  // queries of the chunk, as places among the members
  int64_t end_ = 0;
  int64_t tile_count_ = 0;

  GatheredRows gathered_;
  float* scores_;       // (kKeyBlock, lanes)
  float* tile_memory_;  // of each tile: packed_query, output, maximum, sum, minimum
  Summary summary_;
  ClusterTile tiles_[kTilesPerChunk];
};

}  // namespace

int64_t cluster_scratch(const CastState& state) {
  const AttentionShape& shape = state.problem.inputs.shape;
  const int64_t lanes = state.simd.lanes;
  const int64_t dims = shape.head_dim + shape.value_dim;
  const int64_t packed =
      packs_bfloat16(state) ? bfloat16_size(shape.head_dim, shape.value_dim) / 2 : 0;
  return kKeyBlock * (dims + 1 + lanes) + round_up(shape.value_dim, state.simd.width) +
         kTilesPerChunk * (dims + 3) * lanes + packed;
}

Status attend_within_clusters(const CastState& state, int64_t first, int64_t count) {
  // tasks: (pair, cluster, chunk of its queries)
  const CastAttentionProblem& problem = state.problem;
  const AttentionShape& shape = problem.inputs.shape;
  // At least one chunk: it writes the summary, which a cluster without members has too.
  const int64_t chunks =
      std::max<int64_t>(divide_up(problem.cluster_size, kTilesPerChunk * state.simd.lanes), 1);
  const double products = static_cast<double>(count * problem.clusters * problem.cluster_size) *
                          static_cast<double>(problem.cluster_size);
  return state.context.parallel(
      count * problem.clusters * chunks,
      [&](int64_t task, int worker) {
        const int64_t row = task / chunks;  // (pair of the wave, cluster)
        ClusterChunk chunk(state, first + row / problem.clusters, row % problem.clusters, worker);
        chunk.run(task % chunks, state.pairs + row * problem.cluster_size * shape.value_dim,
                  state.inter + row * shape.value_dim);
      },
      2.0 * products * static_cast<double>(shape.head_dim + shape.value_dim));
}

}  // namespace cluster_attention::kernels
