#pragma once

// Steps 1 and 2 of CAST (§7):
//
//   A_q = sum over heads of q S^T, A_k = sum over heads of k S^T       (N,C)
//   A_g = sigma(phi) f(A_q) + (1 - sigma(phi)) f(A_k), f over the clusters
//
// Method: one block per 64 tokens; tiles of 64 clusters x 64 tokens summed over the heads on tensor
// cores, the raw sums stored, the softmax of each token's column kept online, and A_g made of both
// when the last cluster has been seen. Gates in double precision.

#include "cuda/cast_params.cuh"

namespace cluster_attention::cuda {

/// What f over the clusters needs of 64 tokens.
struct AffinityColumns {
  float query_maximum[kTile];
  float query_sum[kTile];
  float query_gate[kTile];
  float key_gate[kTile];
};

struct AffinityLayout {
  int64_t data;
  int64_t columns;
  int64_t surrogates;
  int64_t rows;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE AffinityLayout affinity_layout() {
  SharedLayout parts;
  AffinityLayout layout;
  layout.data = parts.add<ColumnData>(1);
  layout.columns = parts.add<AffinityColumns>(1);
  layout.surrogates = parts.add<OperandTile<kSplit>>(1);
  layout.rows = parts.add<OperandTile<kSplit>>(1);
  layout.bytes = parts.bytes();
  return layout;
}

template <bool kSplit>
class AffinityBlock {
 public:
  __device__ AffinityBlock(const CastParams& params, int64_t batch, int64_t tile)
      : params_(params), batch_(batch), first_(tile * kTile), tokens_(params.real_tokens(batch)) {
    const AffinityLayout layout = affinity_layout<kSplit>();
    data_ = dynamic_shared<ColumnData>(layout.data);
    columns_ = dynamic_shared<AffinityColumns>(layout.columns);
    surrogate_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.surrogates);
    row_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.rows);
    matrix_ = batch * params.clusters * params.tokens;
  }

  __device__ void run() {
    if (first_ >= tokens_) return;
    open_rows(data_->position, first_, tokens_);
    if (threadIdx.x < kTile && first_ + threadIdx.x < tokens_) {
      const Gates gates = open_gate(params_, batch_, first_ + threadIdx.x);
      columns_->query_gate[threadIdx.x] = gates.query_gate;
      columns_->key_gate[threadIdx.x] = gates.key_gate;
    }
    score(params_.query, params_.affinity + matrix_);
    if (threadIdx.x < kTile) {
      columns_->query_maximum[threadIdx.x] = data_->maximum[threadIdx.x];
      columns_->query_sum[threadIdx.x] = data_->factor[threadIdx.x];
    }
    score(params_.key, params_.key_affinity + matrix_);
    mix();
    if (params_.selection == Selection::single_assignment) {
      __syncthreads();
      rank();
    }
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  /// Raw sums of one side to `sums`; data.maximum and data.factor (the sum) describe its softmax.
  __device__ void score(const Tensor& side, float* sums) {
    const bool softmax = params_.activation == Activation::softmax;
    ColumnState state;
    for (int64_t first = 0; first < params_.clusters; first += kTile) {
      TileSums scores;
      clear(scores);
      for (int64_t head = 0; head < params_.heads; ++head) {
        __syncthreads();  // the tiles are used up
        if (head == 0) open_rows(data_->row_position, first, params_.clusters);
        if (head == 0) __syncthreads();
        multiply_rows(scores, surrogate_tile_, 1, true, Rows(params_.surrogates, 0, head),
                      data_->row_position, *row_tile_, Rows(side, batch_, head), data_->position,
                      params_.dim);
      }
      store(scores, first, sums);
      if (softmax) {
        state.add(scores, kLog2E, 1.0f, nullptr, first, params_.clusters, true, false);
      }
    }
    __syncthreads();
    if (softmax) state.join(*data_, kLog2E, true, false);
  }

  __device__ void store(const TileSums& scores, int64_t first_cluster, float* sums) {
    const TilePlace place;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t cluster = first_cluster + place.row(i / 2);
        const int64_t token = first_ + place.column(n, i % 2);
        if (cluster >= params_.clusters || token >= tokens_) continue;
        bad_ |= !is_number(scores[n][i]);
        sums[cluster * params_.cluster_stride + token * params_.token_stride] = scores[n][i];
      }
    }
  }

  __device__ static float activate(bool softmax, float score, float maximum, float sum) {
    return softmax ? exp2f((score - maximum) * kLog2E) / sum : laplace(score);
  }

  /// A_g in the place of A_q. Neighbouring threads meet neighbouring elements.
  __device__ void mix() {
    __syncthreads();
    const bool softmax = params_.activation == Activation::softmax;
    const int64_t count = tokens_ - first_ < kTile ? tokens_ - first_ : kTile;
    const bool by_token = params_.cluster_stride == 1;
    for (int64_t i = threadIdx.x; i < params_.clusters * count; i += kTileThreads) {
      const int64_t cluster = by_token ? i % params_.clusters : i / count;
      const int64_t column = by_token ? i / params_.clusters : i % count;
      const int64_t place =
          matrix_ + cluster * params_.cluster_stride + (first_ + column) * params_.token_stride;
      const float query_part =
          activate(softmax, params_.affinity[place], columns_->query_maximum[column],
                   columns_->query_sum[column]);
      const float key_part = activate(softmax, params_.key_affinity[place], data_->maximum[column],
                                      data_->factor[column]);
      params_.affinity[place] =
          columns_->query_gate[column] * query_part + columns_->key_gate[column] * key_part;
    }
  }

  /// Each token with its best affinity, for single assignment: one token per warp.
  __device__ void rank() {
    for (int64_t token = first_ + warp_index(); token < tokens_ && token < first_ + kTile;
         token += kTileWarps) {
      uint32_t best = 0;
      for (int64_t cluster = lane_index(); cluster < params_.clusters; cluster += kWarp) {
        const uint32_t key =
            ordered_key(params_.affinity[matrix_ + cluster * params_.cluster_stride +
                                         token * params_.token_stride]);
        best = key > best ? key : best;
      }
      best = warp_max(best);
      if (lane_index() == 0) {
        params_.order[batch_ * params_.order_size + token] =
            make_candidate(value_of_key(best), static_cast<int32_t>(token));
      }
    }
  }

  const CastParams& params_;
  const int64_t batch_;
  const int64_t first_;
  const int64_t tokens_;
  int64_t matrix_;
  ColumnData* data_;
  AffinityColumns* columns_;
  OperandTile<kSplit>* surrogate_tile_;
  OperandTile<kSplit>* row_tile_;
  bool bad_ = false;
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) cast_affinity(const CastParams params) {
  // surrogates: (H,C,D), query, key: (H, 64 of N, D) -> affinity: (C, 64 of N)
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t batch = blockIdx.x / tiles;
  if (blockIdx.x % tiles == 0 && threadIdx.x == 0) params.covered[batch] = 0;
  AffinityBlock<kSplit>(params, batch, blockIdx.x % tiles).run();
}

}  // namespace cluster_attention::cuda
