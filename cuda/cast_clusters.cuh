#pragma once

// Steps 4 and 5 of CAST (§7): attention within each cluster, and one summary of it.
//
//   R_intra = f(tau Q_g K_g^T) V_g
//   R_inter = f(tau (K_g s) * softplus1(-phi_g))^T V_g, s the cluster's surrogate
//
// Method: one block per 64 queries of a cluster, over tiles of 64 members whose keys and values are
// gathered; the surrogate is one more query, after the last member. float32 accumulation.

#include "cuda/cast_params.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

/// Without a split tiles are small: those of the next members are on their way while these are
/// used.
template <bool kSplit>
constexpr int kMemberStages = kSplit ? 1 : 2;

struct CastMembers {
  int32_t position[kTile];  // kNoRow past the last one
  float key_factor[kTile];  // softplus1(-phi), where the summary is among the rows
};

struct ClusterLayout {
  int64_t rows;     // members whose queries are the rows; kExtraRow: the surrogate
  int64_t members;  // whose keys and values are the columns: at hand, fetched next, and after them
  int64_t keys;
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE ClusterLayout cluster_layout(int query_tiles) {
  constexpr int kStages = kMemberStages<kSplit>;
  SharedLayout parts;
  ClusterLayout layout;
  layout.rows = parts.add<int32_t>(kTile);
  layout.members = parts.add<CastMembers>(kStages + 1);
  layout.keys = parts.add<OperandTile<kSplit>>(kStages);
  layout.values = parts.add<OperandTile<kSplit>>(kStages);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

template <bool kSplit, RowAccess kAccess>
class ClusterBlock {
 public:
  /// One tile has all elements of a key, another one those of a value.
  static constexpr bool kSmall = kAccess != RowAccess::any;
  static constexpr int kValueTiles = kSmall ? 1 : kRowValueTiles;
  static constexpr int kStages = kMemberStages<kSplit>;

  /// Queries [64 tile, 64 tile + 64) of a cluster of one sequence; 128 value columns.
  __device__ ClusterBlock(const CastParams& params, int64_t sequence, int64_t cluster, int64_t tile,
                          int64_t value_block)
      : params_(params),
        batch_(sequence / params.heads),
        head_(sequence % params.heads),
        cluster_(cluster),
        list_(batch_ * params.clusters + cluster),
        row_list_(sequence * params.clusters + cluster),
        first_row_(tile * kTile),
        value_block_(value_block),
        first_value_(value_block * kRowValueTiles * kTile),
        size_(params.counts[list_]),
        with_summary_(first_row_ + kTile > size_),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(size_)) {
    const ClusterLayout layout = cluster_layout<kSplit>(params.query_tiles);
    row_position_ = dynamic_shared<int32_t>(layout.rows);
    members_ = dynamic_shared<CastMembers>(layout.members);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    value_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  __device__ void run() {
    if (first_row_ > size_) return;
    if (size_ == 0) {
      write_empty();
      return;
    }
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    open();
    const int count = static_cast<int>(tiles_of(size_));
    for (int step = 0; step < count; ++step) add_members(step, count);
    write();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  __device__ int32_t member(int64_t slot) const {
    return slot < size_ ? params_.members[list_ * params_.cluster_size + slot] : kNoRow;
  }
  __device__ float key_factor(int32_t token) const {
    return with_summary_ && token >= 0 ? params_.key_factor[batch_ * params_.tokens + token] : 0.0f;
  }
  __device__ CastMembers& members(int step) { return members_[step % (kStages + 1)]; }
  /// Whether all of the queries stay in shared memory.
  __device__ bool resident() const {
    return kSmall || static_cast<int64_t>(params_.query_tiles) * kTile >= params_.dim;
  }

  // Made where they are read: kept, they would take a third of the registers.
  __device__ Rows query() const {
    Rows rows(params_.query, batch_, head_);
    rows.extra = params_.surrogates.data + params_.surrogates.offset(0, head_) +
                 cluster_ * params_.surrogates.row_stride;
    return rows;
  }
  __device__ Rows key() const { return {params_.key, batch_, head_}; }
  __device__ Rows value() const { return {params_.value, batch_, head_}; }

  __device__ void open() {
    if (threadIdx.x < kTile) {
      const int64_t row = first_row_ + threadIdx.x;
      const int32_t token = member(row);
      row_position_[threadIdx.x] = row == size_ ? kExtraRow : token;
      for (int step = 0; step < kStages; ++step) {
        const int32_t column = member(step * kTile + threadIdx.x);
        members(step).position[threadIdx.x] = column;
        members(step).key_factor[threadIdx.x] = key_factor(column);
      }
      // The first block of each row tells of it.
      if (params_.memberships != nullptr && head_ == 0 && value_block_ == 0 && token >= 0) {
        atomicOr(params_.membership(batch_, cluster_ / kTile, token), 1ull << cluster_ % kTile);
      }
    }
    __syncthreads();
    for (int t = 0; resident() && t < params_.query_tiles; ++t) {
      fetch_tile(query_tiles_[t], query(), row_position_, t * kTile, params_.dim);
    }
    if (kStages > 1) fetch(0);
  }

  __device__ void fetch(int step) {
    fetch_tiles<kAccess>(key_tiles_[step % kStages], key(), 0, params_.dim,
                         value_tiles_[step % kStages], value(), first_value_, params_.value_dim,
                         members(step).position);
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
    const int32_t token = threadIdx.x < kTile ? member(later * kTile + threadIdx.x) : kNoRow;
    // Warps whose rows all lie past the summary only help with the tiles.
    const bool works = !kSmall || first_row_ + 16 * warp_index() <= size_;
    TileSums scores;
    clear(scores);
    if (works) multiply(scores, step);
    const float factor = key_factor(token);
    if (works) {
      const int columns =
          static_cast<int>(size_ - step * kTile < kTile ? size_ - step * kTile : kTile);
      finish_scores(scores, members(step), columns);
      if (softmax_) {
        softmax_state_.weigh(scores, output_, positive(fabsf(scale_) * kLog2E),
                             [](int) { return 1.0f; });
      }
      add_values(output_[0], scores, value_tiles_[step % kStages],
                 params_.value_dim - first_value_);
    }
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(value_tiles_[step % kStages], value(), members(step).position, column,
                params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, value_tiles_[step % kStages], params_.value_dim - column);
    }
    if (threadIdx.x < kTile) {
      members(later).position[threadIdx.x] = token;
      members(later).key_factor[threadIdx.x] = factor;
    }
  }

  /// Queries times keys, of which the first 64 elements are there.
  __device__ void multiply(TileSums& scores, int step) {
    OperandTile<kSplit>& keys = key_tiles_[step % kStages];
    if constexpr (kSmall) {
      add_scores(scores, query_tiles_[0], keys, params_.dim);
    } else {
      for (int64_t first = 0; first < params_.dim; first += kTile) {
        if (first > 0) {
          __syncthreads();  // the tiles are used up
          fetch_tile(keys, key(), members(step).position, first, params_.dim);
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

  /// The summary's products also have the factors of the keys.
  __device__ void finish_scores(TileSums& scores, const CastMembers& members, int columns) {
    const TilePlace place;
    if (with_summary_) {
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool summary = first_row_ + place.row(i / 2) == size_;
          scores[n][i] *= summary ? members.key_factor[place.column(n, i % 2)] : 1.0f;
        }
      }
    }
    bad_ |= finish_logits(scores, softmax_, params_.logit_factor(scale_), size_ + 1 - first_row_,
                          columns);
  }

  __device__ void write() {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row_ + place.row(half);
      const float sum = softmax_state_.total(half);
      const float normalizer = !softmax_ ? 1.0f : (sum == 0.0f ? 0.0f : 1.0f / sum);
      float* target =
          row < size_ ? params_.intra + (row_list_ * params_.cluster_size + row) * params_.value_dim
                      : params_.inter + row_list_ * params_.value_dim;
      bool row_bad = false;
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
        const int64_t first = first_value_ + t * kTile;
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            float& value = output_[t][n][2 * half + side];
            value *= normalizer;
            row_bad |= first + place.column(n, side) < params_.value_dim && !is_number(value);
          }
        }
        if (row <= size_) write_row(target + first, params_.value_dim - first, output_[t], half);
      }
      row_bad = row_bad && row <= size_;
      bad_ |= row_bad;
      const int quad_bad = warp_max<int>(row_bad ? 1 : 0, 4);
      if (row == size_ && place.pair == 0) *summary_flag() = quad_bad;
    }
  }

  /// A cluster without members has a summary of zeros.
  __device__ void write_empty() {
    const int64_t column = first_value_ + threadIdx.x;
    if (threadIdx.x < kRowValueTiles * kTile && column < params_.value_dim) {
      params_.inter[row_list_ * params_.value_dim + column] = 0.0f;
    }
    if (threadIdx.x == 0) *summary_flag() = 0;
  }

  __device__ int32_t* summary_flag() const {
    const int64_t lists = params_.batch * params_.heads * params_.clusters;
    return params_.inter_not_finite + value_block_ * lists + row_list_;
  }

  const CastParams& params_;
  const int64_t batch_;
  const int64_t head_;
  const int64_t cluster_;
  const int64_t list_;      // (batch, cluster)
  const int64_t row_list_;  // (sequence, cluster)
  const int64_t first_row_;
  const int64_t value_block_;
  const int64_t first_value_;
  const int64_t size_;
  const bool with_summary_;
  const bool softmax_;
  const float scale_;
  int32_t* row_position_;
  CastMembers* members_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tiles_;
  OperandTile<kSplit>* value_tiles_;
  RowSoftmax softmax_state_;
  TileSums output_[kValueTiles];
  bool bad_ = false;
};

/// kAccess: how keys and values are read where dim and value_dim are at most 64, else `any`.
template <bool kSplit, RowAccess kAccess>
__global__ void __launch_bounds__(kTileThreads, kAccess == RowAccess::any ? 2 : 4)
    cast_clusters(const CastParams params) {
  // query: (64 of kappa + 1,D), key: (kappa,D), value: (kappa,E) -> intra: (64 of kappa,E), inter:
  // (E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t tiles = member_tiles(params.cluster_size);
  const ClusterTile at(blockIdx.x, value_blocks, tiles, params.clusters);
  ClusterBlock<kSplit, kAccess>(params, at.sequence, at.cluster, at.tile, at.column_block).run();
}

}  // namespace cluster_attention::cuda
