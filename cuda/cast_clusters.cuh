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

struct MemberColumns {
  int32_t row_position[kTile];  // members whose queries are the rows; kExtraRow: the surrogate
  int32_t position[kTile];      // members whose keys and values are the columns
  float key_factor[kTile];      // softplus1(-phi)
};

struct ClusterLayout {
  int64_t columns;
  int64_t keys;
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE ClusterLayout cluster_layout(int query_tiles) {
  SharedLayout parts;
  ClusterLayout layout;
  layout.columns = parts.add<MemberColumns>(1);
  layout.keys = parts.add<OperandTile<kSplit>>(1);
  layout.values = parts.add<OperandTile<kSplit>>(1);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

template <bool kSplit>
class ClusterBlock {
 public:
  /// Queries [64 tile, 64 tile + 64) of a cluster of one sequence; 128 value columns.
  __device__ ClusterBlock(const CastParams& params, int64_t sequence, int64_t cluster, int64_t tile,
                          int64_t value_block)
      : params_(params),
        batch_(sequence / params.heads),
        list_(batch_ * params.clusters + cluster),
        row_list_(sequence * params.clusters + cluster),
        first_row_(tile * kTile),
        value_block_(value_block),
        first_value_(value_block * kRowValueTiles * kTile),
        size_(params.counts[list_]),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(size_)),
        query_(params.query, batch_, sequence % params.heads),
        key_(params.key, batch_, sequence % params.heads),
        value_(params.value, batch_, sequence % params.heads) {
    const ClusterLayout layout = cluster_layout<kSplit>(params.query_tiles);
    columns_ = dynamic_shared<MemberColumns>(layout.columns);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    value_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
    query_.extra = params.surrogates.data + params.surrogates.offset(0, sequence % params.heads) +
                   cluster * params.surrogates.row_stride;
  }

  __device__ void run() {
    if (first_row_ > size_) return;
    if (size_ == 0) {
      write_empty();
      return;
    }
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) clear(output_[t]);
    if (threadIdx.x < kTile) {
      const int64_t row = first_row_ + threadIdx.x;
      columns_->row_position[threadIdx.x] =
          row < size_ ? member(row) : (row == size_ ? kExtraRow : kNoRow);
    }
    for (int64_t first = 0; first < size_; first += kTile) add_members(first);
    write();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  __device__ int32_t member(int64_t slot) const {
    return params_.members[list_ * params_.cluster_size + slot];
  }

  __device__ void add_members(int64_t first) {
    __syncthreads();  // the tiles of the members before are used up
    if (threadIdx.x < kTile) {
      const int64_t slot = first + threadIdx.x;
      const int32_t token = slot < size_ ? member(slot) : kNoRow;
      columns_->position[threadIdx.x] = token;
      columns_->key_factor[threadIdx.x] =
          token >= 0 ? params_.key_factor[batch_ * params_.tokens + token] : 0.0f;
    }
    __syncthreads();
    TileSums scores;
    clear(scores);
    load_tile(*value_tile_, value_, columns_->position, first_value_, params_.value_dim);
    multiply_rows(scores, query_tiles_, params_.query_tiles, first == 0, query_,
                  columns_->row_position, *key_tile_, key_, columns_->position, params_.dim);
    finish_scores(scores);
    if (softmax_) {
      softmax_state_.weigh(scores, output_, fabsf(scale_) * kLog2E, [this](int column) {
        return columns_->position[column] >= 0 ? 1.0f : 0.0f;
      });
    }
    add_values(output_[0], scores, *value_tile_, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kRowValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(*value_tile_, value_, columns_->position, column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, *value_tile_, params_.value_dim - column);
    }
  }

  /// Products become logits up to the scale; under Laplace, weights.
  __device__ void finish_scores(TileSums& scores) {
    const TilePlace place;
    const float sign = scale_ < 0.0f && softmax_ ? -1.0f : 1.0f;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row_ + place.row(i / 2);
        const int column = place.column(n, i % 2);
        const bool counts = row <= size_ && columns_->position[column] >= 0;
        const float factor = row == size_ ? columns_->key_factor[column] : 1.0f;
        float score = sign * (scores[n][i] * factor);
        if (!softmax_) score *= scale_;
        bad_ |= counts && !is_number(score);
        if (!softmax_) score = counts ? laplace(score) : 0.0f;
        scores[n][i] = score;
      }
    }
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
      for (int t = 0; t < kRowValueTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t column = first_value_ + t * kTile + place.column(n, side);
            if (row > size_ || column >= params_.value_dim) continue;
            const float value = output_[t][n][2 * half + side] * normalizer;
            row_bad |= !is_number(value);
            target[column] = value;
          }
        }
      }
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
  const int64_t list_;      // (batch, cluster)
  const int64_t row_list_;  // (sequence, cluster)
  const int64_t first_row_;
  const int64_t value_block_;
  const int64_t first_value_;
  const int64_t size_;
  const bool softmax_;
  const float scale_;
  Rows query_;
  const Rows key_;
  const Rows value_;
  MemberColumns* columns_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tile_;
  OperandTile<kSplit>* value_tile_;
  RowSoftmax softmax_state_;
  RowOutput output_;
  bool bad_ = false;
};

/// Tiles of the queries of a cluster, the summary among them.
CA_HOST_DEVICE inline int64_t member_tiles(int64_t cluster_size) {
  return tiles_of(cluster_size + 1);
}

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) cast_clusters(const CastParams params) {
  // query: (64 of kappa + 1,D), key: (kappa,D), value: (kappa,E) -> intra: (64 of kappa,E), inter:
  // (E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t tiles = member_tiles(params.cluster_size);
  int64_t index = blockIdx.x;
  const int64_t value_block = index % value_blocks;
  index /= value_blocks;
  const int64_t tile = index % tiles;
  index /= tiles;
  ClusterBlock<kSplit>(params, index / params.clusters, index % params.clusters, tile, value_block)
      .run();
}

}  // namespace cluster_attention::cuda
