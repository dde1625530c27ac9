#pragma once

// Step 4 of CAST (§7): attention within each cluster,
//
//   R_intra = f(tau Q_g K_g^T) V_g
//
// Method: one block per 64 queries of a cluster, or per 128 in two groups of four warps, over tiles
// of 64 members whose keys and values are gathered. One block more makes the summary of the cluster
// (cast_summary.cuh). float32 accumulation.

#include "cuda/cast_summary.cuh"

namespace cluster_attention::cuda {

template <bool kSplit, RowAccess kAccess>
class ClusterBlock {
 public:
  /// One tile has all elements of a key, another one those of a value.
  static constexpr bool kSmall = kAccess != RowAccess::any;
  static constexpr int kValueTiles = kSmall ? 1 : kRowValueTiles;
  static constexpr int kStages = kMemberStages<kSplit>;

  /// The tile-th 64 queries of each group, of a cluster of one sequence; 128 value columns.
  __device__ ClusterBlock(const CastParams& params, int64_t sequence, int64_t cluster, int64_t tile,
                          int64_t value_block)
      : params_(params),
        batch_(static_cast<int>(sequence / params.heads)),
        head_(static_cast<int>(sequence % params.heads)),
        cluster_(static_cast<int>(cluster)),
        group_(kSmall ? static_cast<int>(threadIdx.y) : 0),
        first_row_(static_cast<int>((tile * params.member_groups + group_) * kTile)),
        value_block_(kSmall ? 0 : value_block),
        first_value_(value_block_ * kRowValueTiles * kTile),
        size_(params.counts[list()]),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(size_)) {
    const ClusterLayout layout = cluster_layout<kSplit>(params.member_groups, params.query_tiles);
    row_position_ = dynamic_shared<int32_t>(layout.rows) + group_ * kTile;
    members_ = dynamic_shared<int32_t>(layout.members);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query) + group_ * params.query_tiles;
    key_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    value_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  __device__ void run() {
    if (first_row_ - group_ * kTile >= size_) return;  // all groups of the block
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    open();
    const auto count = static_cast<int>(tiles_of(size_));
    for (int step = 0; step < count; ++step) add_members(step, count);
    write();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  // Made where they are read: kept, they would take registers.
  __device__ int64_t list() const { return batch_ * params_.clusters + cluster_; }
  __device__ int64_t row_list() const {
    return (batch_ * params_.heads + head_) * params_.clusters + cluster_;
  }
  __device__ int32_t member(int slot) const {
    return slot < size_ ? params_.members[list() * params_.cluster_size + slot] : kNoRow;
  }
  /// Of a step's tile: kNoRow past the last member.
  __device__ int32_t* members(int step) { return members_ + step % (kStages + 1) * kTile; }
  /// Whether all of the queries stay in shared memory.
  __device__ bool resident() const {
    return kSmall || static_cast<int64_t>(params_.query_tiles) * kTile >= params_.dim;
  }

  // Made where they are read: kept, they would take a third of the registers.
  __device__ Rows query() const { return {params_.query, batch_, head_}; }
  __device__ Rows key() const { return {params_.key, batch_, head_}; }
  __device__ Rows value() const { return {params_.value, batch_, head_}; }

  __device__ void open() {
    if (threadIdx.x < kTile) {
      const int32_t token = member(first_row_ + static_cast<int>(threadIdx.x));
      row_position_[threadIdx.x] = token;
      for (int step = 0; group_ == 0 && step < kStages; ++step) {
        members(step)[threadIdx.x] = member(step * kTile + static_cast<int>(threadIdx.x));
      }
      // The first block of each row tells of it.
      if (params_.memberships != nullptr && head_ == 0 && value_block_ == 0 && token >= 0) {
        atomicOr(params_.membership(batch_, cluster_ / kTile, token), 1ull << cluster_ % kTile);
      }
    }
    __syncthreads();
    for (int t = 0; resident() && t < params_.query_tiles; ++t) {
      if constexpr (kSmall) {
        fetch_small_tile<kAccess>(query_tiles_[t], query(), row_position_, params_.dim);
      } else {
        fetch_tile(query_tiles_[t], query(), row_position_, t * kTile, params_.dim);
      }
    }
    if (kStages > 1) fetch(0);
  }

  /// Keys by the first group, values by the last one.
  __device__ void fetch(int step) {
    OperandTile<kSplit>& keys = key_tiles_[step % kStages];
    OperandTile<kSplit>& values = value_tiles_[step % kStages];
    if constexpr (kAccess == RowAccess::copies) {
      if (group_ == 0) fetch_small_tile<kAccess>(keys, key(), members(step), params_.dim);
      if (group_ == params_.member_groups - 1) {
        fetch_small_tile<kAccess>(values, value(), members(step), params_.value_dim);
      }
    } else if (params_.member_groups == 1) {
      fetch_tiles<kAccess>(keys, key(), 0, params_.dim, values, value(), first_value_,
                           params_.value_dim, members(step));
    } else if (group_ == 0) {
      fetch_tile<kAccess>(keys, key(), members(step), 0, params_.dim);
    } else {
      fetch_tile<kAccess>(values, value(), members(step), first_value_, params_.value_dim);
    }
  }

  __device__ void add_members(int step, int count) {
    if (kStages == 1) {
      if (step > 0) __syncthreads();  // the tiles of the members before are used up
      fetch(step);
    }
    tiles_arrive();
    __syncthreads();
    if (kStages > 1 && step + 1 < count) fetch(step + 1);
    const int later = step + kStages;
    const bool opens = group_ == 0 && threadIdx.x < kTile;
    const int32_t token = opens ? member(later * kTile + static_cast<int>(threadIdx.x)) : kNoRow;
    // Warps whose rows all lie past the last one only help with the tiles.
    const bool works = !kSmall || first_row_ + 16 * warp_index() < size_;
    TileSums scores;
    clear(scores);
    if (works) multiply(scores, step);
    if (works) {
      const int columns = size_ - step * kTile < kTile ? size_ - step * kTile : kTile;
      bad_ |= finish_logits(scores, softmax_, params_.logit_factor(scale_), size_ - first_row_,
                            columns);
      if (softmax_) {
        softmax_state_.weigh(scores, output_, positive(fabsf(scale_) * kLog2E));
      }
      add_small_values<kAccess>(output_[0], scores, value_tiles_[step % kStages],
                                params_.value_dim - first_value_);
    }
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(value_tiles_[step % kStages], value(), members(step), column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, value_tiles_[step % kStages], params_.value_dim - column);
    }
    if (opens) members(later)[threadIdx.x] = token;
  }

  /// Queries times keys, of which the first 64 elements are there.
  __device__ void multiply(TileSums& scores, int step) {
    OperandTile<kSplit>& keys = key_tiles_[step % kStages];
    if constexpr (kSmall) {
      add_small_scores<kAccess>(scores, query_tiles_[0], keys, params_.dim);
    } else {
      for (int64_t first = 0; first < params_.dim; first += kTile) {
        if (first > 0) {
          __syncthreads();  // the tiles are used up
          fetch_tile(keys, key(), members(step), first, params_.dim);
        }
        if (!resident()) fetch_tile(query_tiles_[0], query(), row_position_, first, params_.dim);
        if (first > 0 || !resident()) {
          tiles_arrive();
          __syncthreads();
        }
        add_scores(scores, query_tiles_[resident() ? first / kTile : 0], keys, params_.dim - first);
      }
    }
  }

  __device__ void write() {
    const TilePlace place;
    NumberCheck numbers;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row_ + place.row(half);
      const float sum = softmax_state_.total(half);
      const float normalizer = !softmax_ ? 1.0f : (sum == 0.0f ? 0.0f : 1.0f / sum);
      if (row >= size_) continue;
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
        const int64_t first = first_value_ + t * kTile;
        if (first >= params_.value_dim) break;
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            float& value = output_[t][n][2 * half + side];
            value *= normalizer;
            // Past the last column it is 0, unless the row is not finite before.
            numbers.add(2 * half + side, value);
          }
        }
        IntraRow<kSplit>(params_, row_list(), row, first).store(output_[t], half);
      }
    }
    bad_ |= !numbers.passed();
  }

  const CastParams& params_;
  // All fit, and 64 bits would take registers.
  const int batch_;
  const int head_;
  const int cluster_;
  const int group_;
  const int first_row_;
  const int64_t value_block_;
  const int64_t first_value_;
  const int size_;
  const bool softmax_;
  const float scale_;
  int32_t* row_position_;
  int32_t* members_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tiles_;
  OperandTile<kSplit>* value_tiles_;
  SlackSoftmax softmax_state_;
  TileSums output_[kValueTiles];
  bool bad_ = false;
};

/// kAccess: how queries, keys and values are read where dim and value_dim are at most 64, else
/// `any`.
template <bool kSplit, RowAccess kAccess>
__global__ void __launch_bounds__(kAccess == RowAccess::any ? kTileThreads
                                                            : kTileThreads * kMostMemberGroups,
                                  2) cast_clusters(const CastParams params) {
  // query, key: (kappa,D), value: (kappa,E) -> intra: (64 of kappa,E), inter: (E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t blocks = cluster_blocks(params);
  const ClusterTile at(blockIdx.x, value_blocks, blocks, params.clusters);
  if (at.tile + 1 == blocks) {
    SummaryBlock<kSplit, kAccess>(params, at.sequence, at.cluster, at.column_block).run();
  } else {
    ClusterBlock<kSplit, kAccess>(params, at.sequence, at.cluster, at.tile, at.column_block).run();
  }
}

}  // namespace cluster_attention::cuda
