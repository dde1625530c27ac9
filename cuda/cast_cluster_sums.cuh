#pragma once

// What the clusters get from step 6 of CAST (§7), backwards: sums over the tokens n of a sequence.
//
//   by R_inter of c       sum over the tokens outside of c of A_sum[n,c] g_n
//   by the surrogate of c  tau sum over the tokens of softplus1(phi_n) dz_nc q_n
//
// with dz the gradient by the logits of step 6. Method: as in assignment.cuh; tiles of 64 clusters
// x 64 tokens, parts of the tokens whose sums lie apart and are added in order. A launch before
// keeps the maximum and the sum of each token's scores, so that every tile finds its weights alone.

#include "cuda/cast_gradient_tile.cuh"

namespace cluster_attention::cuda {

struct CastStatisticsLayout {
  int64_t data;
  int64_t surrogates;
  int64_t queries;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE CastStatisticsLayout cast_statistics_layout() {
  SharedLayout parts;
  CastStatisticsLayout layout;
  layout.data = parts.add<ColumnData>(1);
  layout.surrogates = parts.add<OperandTile<kSplit>>(1);
  layout.queries = parts.add<OperandTile<kSplit>>(1);
  layout.bytes = parts.bytes();
  return layout;
}

/// Maximum and sum of the scores of each token over all clusters, under softmax.
template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) cast_statistics(const CastGradientParams params) {
  // surrogates: (C,D), query: (64 of N,D) -> token_maximum, token_inverse: (64 of N)
  const CastParams& forward = params.forward;
  const CastStatisticsLayout layout = cast_statistics_layout<kSplit>();
  ColumnData& data = *dynamic_shared<ColumnData>(layout.data);
  OperandTile<kSplit>& surrogate_tile = *dynamic_shared<OperandTile<kSplit>>(layout.surrogates);
  OperandTile<kSplit>& query_tile = *dynamic_shared<OperandTile<kSplit>>(layout.queries);
  const int64_t sequence = blockIdx.x / token_tiles(forward.tokens);
  const int64_t first_token = blockIdx.x % token_tiles(forward.tokens) * kTile;
  const int64_t batch = sequence / forward.heads;
  const int64_t head = sequence % forward.heads;
  const int64_t tokens = forward.real_tokens(batch);
  if (first_token >= tokens) return;
  const int64_t token = first_token + threadIdx.x;
  open_rows(data.position, first_token, tokens);
  if (threadIdx.x < kTile && token < tokens) {
    data.scale[threadIdx.x] = forward.query_factor[batch * forward.tokens + token];
  }
  const CastFunction function(forward, forward.clusters);
  ColumnState state;
  bool bad = false;
  for (int64_t first = 0; first < forward.clusters; first += kTile) {
    __syncthreads();  // the tiles are used up
    open_rows(data.row_position, first, forward.clusters);
    __syncthreads();
    TileSums scores;
    clear(scores);
    multiply_rows(scores, &surrogate_tile, 1, true, Rows(forward.surrogates, 0, head),
                  data.row_position, query_tile, Rows(forward.query, batch, head), data.position,
                  forward.dim);
    for_each_sum([&](int n, int i, int row, int column) {
      scores[n][i] = function.score(scores[n][i], data.scale[column]);
      bad |= data.row_position[row] >= 0 && data.position[column] >= 0 && !is_number(scores[n][i]);
    });
    state.add(scores, function.exponent, first, forward.clusters);
  }
  state.join(data, function.exponent);
  if (threadIdx.x < kTile && token < tokens) {
    params.token_maximum[sequence * forward.tokens + token] = data.maximum[threadIdx.x];
    params.token_inverse[sequence * forward.tokens + token] = 1.0f / data.factor[threadIdx.x];
  }
  if (bad) mark_non_finite(params.forward.flags);
}

struct CastClusterData {
  int32_t row_position[kTile];  // clusters
  int32_t position[kTile];      // tokens
  float factor[kTile];          // softplus1(phi) of each token
  float maximum[kTile];
  float inverse[kTile];
  float total[kTile];
  uint32_t ticket;
};

/// Part of the tokens of one sequence for 64 clusters and 128 columns: of the gradients by R_inter,
/// or, with kSurrogates, of those by the surrogates.
template <bool kSplit, bool kSurrogates>
class CastClusterSums {
 public:
  __device__ CastClusterSums(const CastGradientParams& params, int64_t sequence,
                             int64_t column_block)
      : params_(params),
        forward_(params.forward),
        sequence_(sequence),
        batch_(sequence / forward_.heads),
        tokens_(forward_.real_tokens(batch_)),
        column_block_(column_block),
        first_column_(column_block * kRowValueTiles * kTile),
        width_(kSurrogates ? forward_.dim : forward_.value_dim),
        layout_(
            cast_gradient_layout<CastClusterData, kSplit>(params.head_tiles, params.value_tiles)),
        data_(dynamic_shared<CastClusterData>(layout_.data)),
        function_(forward_, forward_.clusters),
        products_(params, layout_),
        clusters_(Rows(forward_.surrogates, 0, sequence % forward_.heads),
                  dense_rows_of(params.inter + sequence * forward_.clusters * forward_.value_dim,
                                forward_.value_dim),
                  data_->row_position),
        tokens_side_(Rows(forward_.query, batch_, sequence % forward_.heads),
                     Rows(params.output_gradient, batch_, sequence % forward_.heads),
                     data_->position) {}

  /// Block `index` of the sequence's.
  __device__ void run(int64_t index) {
    if (tokens_ == 0) return;
    const int64_t tiles = tiles_of(forward_.clusters);
    const int64_t parts = assignment_parts(tokens_, forward_.clusters);
    const int64_t part = index / tiles;
    if (part >= parts) return;
    first_row_ = index % tiles * kTile;
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) clear(output_[t]);
    open_rows(data_->row_position, first_row_, forward_.clusters);
    const InputRange range = assignment_part(tokens_, parts, part);
    for (int64_t first = range.begin; first < range.end; first += kTile) {
      add_tokens(first, range, first == range.begin);
    }
    write(part);
    if (!kSurrogates) total(parts, index % tiles);
    if (bad_) mark_non_finite(forward_.flags);
  }

 private:
  __device__ void add_tokens(int64_t first, const InputRange& range, bool load_rows) {
    __syncthreads();  // the tiles and the data of the tokens before are used up
    if (threadIdx.x < kTile) open_token(first, range.end);
    __syncthreads();
    TileSums weights, changes;
    products_.multiply(weights, changes, kSurrogates, clusters_, tokens_side_, load_rows);
    for_each_sum([&](int n, int i, int row, int column) {
      weights[n][i] = weigh(weights[n][i], changes[n][i], row, column);
    });
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) {
      const int64_t column = first_column_ + t * kTile;
      if (column >= width_) break;
      if constexpr (kSurrogates) {
        products_.add_head_rows(output_[t], weights, tokens_side_, column);
      } else {
        products_.add_value_rows(output_[t], weights, tokens_side_, column);
      }
    }
  }

  __device__ void open_token(int64_t first, int64_t end) {
    const int64_t token = first + threadIdx.x;
    data_->position[threadIdx.x] = token < end ? static_cast<int32_t>(token) : kNoRow;
    if (token >= end) return;
    const int64_t place = sequence_ * forward_.tokens + token;
    data_->factor[threadIdx.x] = forward_.query_factor[batch_ * forward_.tokens + token];
    if (function_.softmax) {
      data_->maximum[threadIdx.x] = params_.token_maximum[place];
      data_->inverse[threadIdx.x] = params_.token_inverse[place];
    }
    if (kSurrogates) data_->total[threadIdx.x] = params_.token_total[place];
  }

  /// What a token weighs with in the sum of a cluster.
  __device__ float weigh(float product, float change, int row, int column) {
    const int32_t token = data_->position[column];
    const int64_t cluster = first_row_ + row;
    if (token < 0 || cluster >= forward_.clusters) return 0.0f;
    const float factor = data_->factor[column];
    const float score = function_.score(product, factor);
    bad_ |= !is_number(score);
    const float weight = function_.weight(score, data_->maximum[column], data_->inverse[column]);
    const int64_t list = sequence_ * forward_.clusters + cluster;
    const int32_t slot = params_.slot_of(batch_, cluster, token);
    if constexpr (kSurrogates) {
      if (slot >= 0) change = params_.row_total[list * (forward_.cluster_size + 1) + slot];
      return function_.slope(score, weight, change, data_->total[column]) * factor;
    }
    if (slot < 0) return weight;
    // No summary of an own cluster.
    if (column_block_ == 0) params_.slot_weight[list * forward_.cluster_size + slot] = weight;
    return 0.0f;
  }

  __device__ void write(int64_t part) {
    float* sums = kSurrogates ? params_.surrogate_sums : params_.summary_sums;
    const int64_t first = sequence_ * params_.sum_rows + part * forward_.clusters + first_row_;
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) {
      for_each_sum([&](int n, int i, int row, int column) {
        const int64_t target = first_column_ + t * kTile + column;
        if (first_row_ + row >= forward_.clusters || target >= width_) return;
        sums[(first + row) * width_ + target] = output_[t][n][i];
      });
    }
  }

  /// The last part of a tile of clusters adds all of them up, in order.
  __device__ void total(int64_t parts, int64_t tile) {
    const int64_t blocks = value_blocks_of(width_);
    const int64_t place = (sequence_ * tiles_of(forward_.clusters) + tile) * blocks + column_block_;
    if (!last_block_done(params_.tickets + place, static_cast<uint32_t>(parts), &data_->ticket)) {
      return;
    }
    const float* sums = params_.summary_sums + sequence_ * params_.sum_rows * width_;
    float* totals = params_.summary_gradient + sequence_ * forward_.clusters * width_;
    const int64_t column = first_column_ + threadIdx.x;
    if (column >= width_) return;
    for (int64_t c = first_row_; c < first_row_ + kTile && c < forward_.clusters; ++c) {
      totals[c * width_ + column] =
          total_of_parts(sums + c * width_ + column, parts, forward_.clusters * width_);
    }
  }

  const CastGradientParams& params_;
  const CastParams& forward_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t tokens_;
  const int64_t column_block_;
  const int64_t first_column_;
  const int64_t width_;
  const CastGradientLayout layout_;
  CastClusterData* data_;
  const CastFunction function_;
  CastProducts<kSplit> products_;
  const CastSide clusters_;
  const CastSide tokens_side_;
  int64_t first_row_ = 0;
  RowOutput output_;
  bool bad_ = false;
};

template <bool kSplit, bool kSurrogates>
__global__ void __launch_bounds__(kTileThreads) cast_cluster_sums(const CastGradientParams params) {
  // surrogates: (64 of C,D), query: (part of N,D), output_gradient: (part of N,E)
  //   -> summary_sums: (64 of C,E), or with inter: (64 of C,E) -> surrogate_sums: (64 of C,D)
  const CastParams& forward = params.forward;
  const int64_t column_blocks = value_blocks_of(kSurrogates ? forward.dim : forward.value_dim);
  const int64_t blocks = assignment_blocks(forward.tokens, forward.clusters);
  const int64_t rest = blockIdx.x / column_blocks;
  CastClusterSums<kSplit, kSurrogates> sums(params, rest / blocks, blockIdx.x % column_blocks);
  sums.run(rest % blocks);
}

}  // namespace cluster_attention::cuda
