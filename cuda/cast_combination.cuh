#pragma once

// Steps 6 and 7 of CAST (§7): every token weighs the clusters.
//
//   A_sum = f(tau (q S^T) softplus1(phi)), f over the clusters
//   O_n = sum over its clusters of A_sum[n,c] R_intra[c,slot] + sum over the others of
//         A_sum[n,c] R_inter[c]
//
// Method: one block per 64 tokens, over tiles of 64 clusters, with the online softmax. The weights
// of a token's own clusters are taken out of the product A_sum R_inter and spent on its rows of
// R_intra instead, found by the inverse map: nothing is scattered, and nothing is added that would
// have to be taken away again. A summary that is not finite is no operand either: what it reaches,
// it reaches term by term, so that it does not reach its own members. float32 accumulation.

#include "cuda/cast_params.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

struct CombinationColumns {
  int32_t row_position[kTile];    // tokens
  int32_t position[kTile];        // clusters
  int32_t value_position[kTile];  // clusters whose summary is finite
  float row_factor[kTile];        // softplus1(phi)
};

struct CombinationLayout {
  int64_t columns;
  int64_t keys;  // of all warps; then the weights of explicit terms
  int64_t values;
  int64_t query;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE CombinationLayout combination_layout(int query_tiles) {
  constexpr int64_t kWeights = kTile * kTile * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kKeys = static_cast<int64_t>(sizeof(OperandTile<kSplit>));
  SharedLayout parts;
  CombinationLayout layout;
  layout.columns = parts.add<CombinationColumns>(1);
  layout.keys = parts.add<unsigned char>(kKeys > kWeights ? kKeys : kWeights);
  layout.values = parts.add<OperandTile<kSplit>>(1);
  layout.query = parts.add<OperandTile<kSplit>>(query_tiles);
  layout.bytes = parts.bytes();
  return layout;
}

template <bool kSplit>
class CombinationBlock {
 public:
  __device__ CombinationBlock(const CastParams& params, int64_t sequence, int64_t tile,
                              int64_t value_block)
      : params_(params),
        sequence_(sequence),
        batch_(sequence / params.heads),
        head_(sequence % params.heads),
        first_token_(tile * kTile),
        tokens_(params.real_tokens(batch_)),
        value_block_(value_block),
        first_value_(value_block * kRowValueTiles * kTile),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(params.clusters)),
        query_(params.query, batch_, head_),
        surrogates_(params.surrogates, 0, head_) {
    const CombinationLayout layout = combination_layout<kSplit>(params.query_tiles);
    columns_ = dynamic_shared<CombinationColumns>(layout.columns);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    weights_ = dynamic_shared<float>(layout.keys);
    value_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
    inter_.data = params.inter + sequence * params.clusters * params.value_dim;
    inter_.stride = params.value_dim;
  }

  __device__ void run() {
#pragma unroll
    for (int t = 0; t < kRowValueTiles; ++t) clear(output_[t]);
    open_rows(columns_->row_position, first_token_, tokens_);
    if (threadIdx.x < kTile) {
      const int64_t token = first_token_ + threadIdx.x;
      columns_->row_factor[threadIdx.x] =
          token < tokens_ ? params_.query_factor[batch_ * params_.tokens + token] : 0.0f;
    }
    if (first_token_ < tokens_) {
      for (int64_t first = 0; first < params_.clusters; first += kTile) add_clusters(first);
    }
    write();
    if (bad_) mark_non_finite(params_.flags);
    if (params_.coverage != nullptr && head_ == 0 && value_block_ == 0) count_covered();
  }

 private:
  __device__ void add_clusters(int64_t first) {
    __syncthreads();  // the tiles of the clusters before are used up
    if (threadIdx.x < kTile) open_cluster(first);
    __syncthreads();
    TileSums scores;
    clear(scores);
    load_tile(*value_tile_, inter_, columns_->value_position, first_value_, params_.value_dim);
    multiply_rows(scores, query_tiles_, params_.query_tiles, first == 0, query_,
                  columns_->row_position, *key_tile_, surrogates_, columns_->position, params_.dim);
    finish_scores(scores);
    if (softmax_) {
      softmax_state_.weigh(scores, output_, fabsf(scale_) * kLog2E, [this](int column) {
        return columns_->position[column] >= 0 ? 1.0f : 0.0f;
      });
    }
    __syncthreads();  // the keys give way to weights
    unsigned long long terms[2];
    take_terms(scores, first, terms);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) add_terms(terms[half], half, first);
    add_values(output_[0], scores, *value_tile_, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kRowValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(*value_tile_, inter_, columns_->value_position, column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, *value_tile_, params_.value_dim - column);
    }
  }

  __device__ void open_cluster(int64_t first) {
    const int64_t cluster = first + threadIdx.x;
    const int64_t lists = params_.batch * params_.heads * params_.clusters;
    int32_t position = kNoRow;
    int32_t value_position = kNoRow;
    if (cluster < params_.clusters) {
      position = static_cast<int32_t>(cluster);
      const int64_t list = sequence_ * params_.clusters + cluster;
      const bool usable = params_.inter_not_finite[value_block_ * lists + list] == 0;
      value_position = usable ? position : kNoRow;
    }
    columns_->position[threadIdx.x] = position;
    columns_->value_position[threadIdx.x] = value_position;
  }

  /// Products become logits up to the scale; under Laplace, weights.
  __device__ void finish_scores(TileSums& scores) {
    const TilePlace place;
    const float sign = scale_ < 0.0f && softmax_ ? -1.0f : 1.0f;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = place.row(i / 2);
        const bool counts =
            first_token_ + row < tokens_ && columns_->position[place.column(n, i % 2)] >= 0;
        float score = sign * (scores[n][i] * columns_->row_factor[row]);
        if (!softmax_) score *= scale_;
        bad_ |= counts && !is_number(score);
        if (!softmax_) score = counts ? laplace(score) : 0.0f;
        scores[n][i] = score;
      }
    }
  }

  /// The place of a token in a cluster, or -1.
  __device__ int32_t slot_of(int64_t token, int64_t cluster) const {
    if (params_.slots != nullptr) {
      return params_.slots[(batch_ * params_.clusters + cluster) * params_.tokens + token];
    }
    const int64_t place = batch_ * params_.tokens + token;
    return params_.own_cluster[place] == cluster ? params_.own_slot[place] : -1;
  }

  /// Moves the weights of terms that are added one by one to shared memory; terms[half] has the
  /// columns of row place.row(half).
  __device__ void take_terms(TileSums& weights, int64_t first, unsigned long long (&terms)[2]) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row(half);
      unsigned long long mine = 0;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int column = place.column(n, side);
          if (first_token_ + row >= tokens_ || columns_->position[column] < 0) continue;
          const bool own = slot_of(first_token_ + row, first + column) >= 0;
          covered_[half] |= own;
          if (!own && columns_->value_position[column] >= 0) continue;
          mine |= 1ull << column;
          weights_[row * kTile + column] = weights[n][2 * half + side];
          weights[n][2 * half + side] = 0.0f;
        }
      }
      terms[half] = warp_reduce(
          mine, [](unsigned long long a, unsigned long long b) { return a | b; }, 4);
    }
  }

  /// Adds the terms of one row: members' rows of R_intra, and summaries that are not finite. The
  /// four lanes of a row go together; other rows may have more or fewer terms.
  __device__ void add_terms(unsigned long long terms, int half, int64_t first) {
    const TilePlace place;
    const int row = place.row(half);
    for (; terms != 0; terms &= terms - 1) {
      const int column = __ffsll(static_cast<long long>(terms)) - 1;
      const float weight = weights_[row * kTile + column];
      const int64_t list = sequence_ * params_.clusters + first + column;
      const int32_t slot = slot_of(first_token_ + row, first + column);
      const float* source =
          slot >= 0 ? params_.intra + (list * params_.cluster_size + slot) * params_.value_dim
                    : params_.inter + list * params_.value_dim;
#pragma unroll
      for (int t = 0; t < kRowValueTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t element = first_value_ + t * kTile + place.column(n, side);
            if (element >= params_.value_dim) continue;
            float& sum = output_[t][n][2 * half + side];
            sum = fmaf(weight, source[element], sum);
          }
        }
      }
    }
  }

  __device__ void write() {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token_ + place.row(half);
      const float sum = softmax_state_.total(half);
      const float normalizer = !softmax_ ? 1.0f : (sum == 0.0f ? 0.0f : 1.0f / sum);
      if (token >= params_.tokens) continue;
      const int64_t target = batch_ * params_.output.batch_stride +
                             head_ * params_.output.head_stride + token * params_.output.row_stride;
#pragma unroll
      for (int t = 0; t < kRowValueTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int64_t column = first_value_ + t * kTile + place.column(n, side);
            if (column >= params_.value_dim) continue;
            const float value =
                token < tokens_ ? output_[t][n][2 * half + side] * normalizer : 0.0f;
            bad_ |= !is_number(value);
            store_element(params_.output.data, params_.storage, target + column, value);
          }
        }
      }
    }
  }

  /// The last block of a batch entry divides.
  __device__ void count_covered() {
    const TilePlace place;
    int32_t covered = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row_covered = warp_max<int>(covered_[half] ? 1 : 0, 4);
      if (place.pair == 0) covered += row_covered;
    }
    covered = warp_sum(covered);
    if (lane_index() == 0 && covered > 0) atomicAdd(params_.covered + batch_, covered);
    const auto blocks = static_cast<uint32_t>(token_tiles(params_.tokens));
    __syncthreads();
    if (!last_block_done(params_.tickets + batch_, blocks,
                         reinterpret_cast<uint32_t*>(columns_->row_position))) {
      return;
    }
    if (threadIdx.x == 0) {
      // As an atomic, so that it is what all blocks have added up.
      const int32_t total = atomicAdd(params_.covered + batch_, 0);
      params_.coverage[batch_] =
          tokens_ == 0 ? 1.0 : static_cast<double>(total) / static_cast<double>(tokens_);
    }
  }

  const CastParams& params_;
  const int64_t sequence_;
  const int64_t batch_;
  const int64_t head_;
  const int64_t first_token_;
  const int64_t tokens_;
  const int64_t value_block_;
  const int64_t first_value_;
  const bool softmax_;
  const float scale_;
  const Rows query_;
  const Rows surrogates_;
  Rows inter_;
  CombinationColumns* columns_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tile_;
  OperandTile<kSplit>* value_tile_;
  float* weights_;
  RowSoftmax softmax_state_;
  RowOutput output_;
  bool covered_[2] = {false, false};
  bool bad_ = false;
};

template <bool kSplit>
__global__ void __launch_bounds__(kTileThreads) cast_combination(const CastParams params) {
  // query: (64 of N,D), surrogates: (C,D), inter: (C,E), intra: (C,kappa,E) -> output: (64 of N,E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t rest = blockIdx.x / value_blocks;
  CombinationBlock<kSplit>(params, rest / tiles, rest % tiles, blockIdx.x % value_blocks).run();
}

}  // namespace cluster_attention::cuda
