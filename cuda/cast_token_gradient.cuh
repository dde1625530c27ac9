#pragma once

// Step 6 of CAST (§7) backwards, by the queries and the gate. With A_sum[n,c] = f of the logits
// tau softplus1(phi_n) q_n.S_c, and da_nc = g_n.R_c, or what the token's own cluster has found,
//
//   dz_nc = A_sum[n,c] (da_nc - total_n), total_n = sum over c of A_sum[n,c] da_nc
//   by the query: tau softplus1(phi_n) sum over c of dz_nc S_c, and what its slots hold
//   by phi: tau sigma(phi_n) sum over c of dz_nc q_n.S_c
//
// Method: one block per 64 tokens and 128 columns of D, twice over tiles of 64 clusters: for the
// totals, then for the gradients; maximum and sum of each token were kept. Slots are found by the
// inverse map and added by ascending cluster, so that nothing is scattered.

#include "cuda/cast_gather.cuh"
#include "cuda/cast_gradient_tile.cuh"

namespace cluster_attention::cuda {

struct CastTokenData {
  int32_t row_position[kTile];  // tokens
  int32_t position[kTile];      // clusters
  float factor[kTile];          // softplus1(phi) of each token
  float maximum[kTile];
  float inverse[kTile];
};

/// At the end, the column tile gives way to the sums of 64 columns of D.
constexpr int64_t kCastTokenSums = kTile * kTile * static_cast<int64_t>(sizeof(float));

template <bool kSplit>
CA_HOST_DEVICE CastGradientLayout cast_token_layout(int head_tiles, int value_tiles) {
  return cast_gradient_layout<CastTokenData, kSplit>(head_tiles, value_tiles, kCastTokenSums);
}

template <bool kSplit>
class CastTokenGradient {
 public:
  __device__ CastTokenGradient(const CastGradientParams& params, int64_t sequence, int64_t tile,
                               int64_t column_block)
      : params_(params),
        forward_(params.forward),
        sequence_(sequence),
        batch_(sequence / forward_.heads),
        head_(sequence % forward_.heads),
        first_token_(tile * kTile),
        tokens_(forward_.real_tokens(batch_)),
        column_block_(column_block),
        first_column_(column_block * kRowValueTiles * kTile),
        layout_(cast_token_layout<kSplit>(params.head_tiles, params.value_tiles)),
        data_(dynamic_shared<CastTokenData>(layout_.data)),
        sums_(dynamic_shared<float>(layout_.column)),
        function_(forward_, forward_.clusters),
        products_(params, layout_),
        rows_(Rows(forward_.query, batch_, head_), Rows(params.output_gradient, batch_, head_),
              data_->row_position),
        columns_(Rows(forward_.surrogates, 0, head_),
                 dense_rows_of(params.inter + sequence * forward_.clusters * forward_.value_dim,
                               forward_.value_dim),
                 data_->position) {}

  __device__ void run() {
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) clear(output_[t]);
    if (threadIdx.x < kTile) open_row();
    if (first_token_ < tokens_) {
      for (int64_t first = 0; first < forward_.clusters; first += kTile) {
        multiply(first, first == 0);
        observe();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) total_[half] = warp_sum(total_[half], 4);
      if (params_.query.data != nullptr || params_.gate != nullptr) differentiate();
      if (column_block_ == 0) write_token();
    }
    if (params_.query.data != nullptr) write_query();
    if (bad_) mark_non_finite(forward_.flags);
  }

 private:
  __device__ void open_row() const {
    const int64_t token = first_token_ + threadIdx.x;
    data_->row_position[threadIdx.x] = token < tokens_ ? static_cast<int32_t>(token) : kNoRow;
    if (token >= tokens_) return;
    data_->factor[threadIdx.x] = forward_.query_factor[batch_ * forward_.tokens + token];
    if (!function_.softmax) return;
    const int64_t place = sequence_ * forward_.tokens + token;
    data_->maximum[threadIdx.x] = params_.token_maximum[place];
    data_->inverse[threadIdx.x] = params_.token_inverse[place];
  }

  /// Products and changes of clusters [first, first + 64); own clusters bring their own change.
  __device__ void multiply(int64_t first, bool load_rows) {
    __syncthreads();  // the tiles and the data of the clusters before are used up
    open_rows(data_->position, first, forward_.clusters);
    __syncthreads();
    products_.multiply(product_, change_, true, rows_, columns_, load_rows);
    for_each_sum([&](int n, int i, int row, int column) {
      if (!counts(row, column)) return;
      const int32_t slot = params_.slot_of(batch_, first + column, first_token_ + row);
      if (slot < 0) return;
      const int64_t list = sequence_ * forward_.clusters + first + column;
      change_[n][i] = params_.row_total[list * (forward_.cluster_size + 1) + slot];
    });
  }

  __device__ bool counts(int row, int column) const {
    return first_token_ + row < tokens_ && data_->position[column] >= 0;
  }

  __device__ void observe() {
    for_each_sum([&](int n, int i, int row, int column) {
      if (!counts(row, column)) return;
      const float score = function_.score(product_[n][i], data_->factor[row]);
      bad_ |= !is_number(score);
      const float weight = function_.weight(score, data_->maximum[row], data_->inverse[row]);
      total_[i / 2] = fmaf(weight, change_[n][i], total_[i / 2]);
    });
  }

  __device__ void differentiate() {
    const bool one_tile = forward_.clusters <= kTile;
    for (int64_t first = 0; first < forward_.clusters; first += kTile) {
      if (!one_tile) multiply(first, false);
      for_each_sum([&](int n, int i, int row, int column) {
        product_[n][i] =
            counts(row, column) ? slope(product_[n][i], change_[n][i], row, i / 2) : 0.0f;
      });
      if (params_.query.data == nullptr) continue;
#pragma unroll
      for (int t = 0; t < kRowValueTiles; ++t) {
        const int64_t column = first_column_ + t * kTile;
        if (column >= forward_.dim) break;
        products_.add_head_rows(output_[t], product_, columns_, column);
      }
    }
  }

  /// dz of a product; it also enters the gate's sum.
  __device__ float slope(float product, float change, int row, int half) {
    const float score = function_.score(product, data_->factor[row]);
    const float weight = function_.weight(score, data_->maximum[row], data_->inverse[row]);
    const float slope = function_.slope(score, weight, change, total_[half]);
    gate_[half] = fmaf(slope, product, gate_[half]);
    return slope;
  }

  __device__ void write_token() const {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token_ + place.row(half);
      const float gate = warp_sum(gate_[half], 4);
      if (token >= tokens_ || place.pair != 0) continue;
      const int64_t target = sequence_ * forward_.tokens + token;
      if (params_.surrogates != nullptr) params_.token_total[target] = total_[half];
      if (params_.gate == nullptr) continue;
      params_.token_gate[target] =
          function_.scale * sigmoid(forward_.gate_logit(batch_, token)) * gate;
    }
  }

  /// By way of shared memory, so that a warp meets a row of D numbers side by side.
  __device__ void write_query() {
    __syncthreads();  // the column tile is used up
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) {
      const int64_t first = first_column_ + t * kTile;
      if (first >= forward_.dim) break;
      __syncwarp();  // the rows of a warp are its own
      for_each_sum([&](int n, int i, int row, int column) {
        sums_[row * kTile + column] = output_[t][n][i];
      });
      __syncwarp();
      for (int row = 16 * warp_index(); row < 16 * (warp_index() + 1); ++row) {
        write_row(row, first);
      }
    }
  }

  __device__ void write_row(int row, int64_t first) {
    const int64_t token = first_token_ + row;
    if (token >= forward_.tokens) return;
    constexpr int kColumns = kTile / kWarp;
    float sums[kColumns] = {};
    if (token < tokens_) {
      const float factor = function_.scale * data_->factor[row];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        sums[i] = sums_[row * kTile + lane_index() + i * kWarp] * factor;
      }
      add_slots<kColumns>(params_, sequence_, token, params_.slot_query, forward_.dim, first, sums);
    }
    bad_ |= write_gradient_row<kColumns>(forward_, params_.query, sequence_, token, forward_.dim,
                                         first, sums);
  }

  const CastGradientParams& params_;
  const CastParams& forward_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t head_;
  const int64_t first_token_;
  const int64_t tokens_;
  const int64_t column_block_;
  const int64_t first_column_;
  const CastGradientLayout layout_;
  CastTokenData* data_;
  float* sums_;
  const CastFunction function_;
  CastProducts<kSplit> products_;
  const CastSide rows_;
  const CastSide columns_;
  TileSums product_;
  TileSums change_;
  RowOutput output_;
  float total_[2] = {0.0f, 0.0f};
  float gate_[2] = {0.0f, 0.0f};
  bool bad_ = false;
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads)
    cast_token_gradient(const CastGradientParams params) {
  // query: (64 of N,D), output_gradient: (64 of N,E), surrogates: (C,D), inter: (C,E), slot_query:
  // (C,kappa,D) -> gradient by query: (64 of N,D), token_total, token_gate: (64 of N)
  const int64_t column_blocks =
      params.query.data != nullptr ? value_blocks_of(params.forward.dim) : 1;
  const int64_t tiles = token_tiles(params.forward.tokens);
  const int64_t rest = blockIdx.x / column_blocks;
  CastTokenGradient<kSplit>(params, rest / tiles, rest % tiles, blockIdx.x % column_blocks).run();
}

}  // namespace cluster_attention::cuda
