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
  uint32_t not_finite[2];         // bits of the others
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

template <bool kSplit, bool kSmall>
class CombinationBlock {
 public:
  /// With kSmall one tile has all elements of a query, another one those of a summary.
  static constexpr int kValueTiles = kSmall ? 1 : kRowValueTiles;

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
        scale_(params.product_scale(params.clusters)) {
    const CombinationLayout layout = combination_layout<kSplit>(params.query_tiles);
    columns_ = dynamic_shared<CombinationColumns>(layout.columns);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query);
    key_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    weights_ = dynamic_shared<float>(layout.keys);
    value_tile_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  __device__ void run() {
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    if (threadIdx.x >= kTile) open_token(static_cast<int>(threadIdx.x) - kTile);
    if (first_token_ < tokens_) {
      for (int64_t first = 0; first < params_.clusters; first += kTile) add_clusters(first);
    }
    write();
    if (bad_) mark_non_finite(params_.flags);
    if (params_.coverage != nullptr && head_ == 0 && value_block_ == 0) count_covered();
  }

 private:
  // Made where they are read: kept, they would take a third of the registers.
  __device__ Rows query() const { return {params_.query, batch_, head_}; }
  __device__ Rows surrogates() const { return {params_.surrogates, 0, head_}; }
  __device__ Rows inter() const {
    Rows rows;
    rows.data = params_.inter + sequence_ * params_.clusters * params_.value_dim;
    rows.stride = params_.value_dim;
    return rows;
  }

  /// By one half of the block, while the other one opens the first clusters.
  __device__ void open_token(int row) {
    const int64_t token = first_token_ + row;
    const bool real = token < tokens_;
    columns_->row_position[row] = real ? static_cast<int32_t>(token) : kNoRow;
    columns_->row_factor[row] = real ? params_.query_factor[batch_ * params_.tokens + token] : 0.0f;
  }

  __device__ void add_clusters(int64_t first) {
    if (first > 0) __syncthreads();  // the tiles of the clusters before are used up
    if (threadIdx.x < kTile) open_cluster(first);
    unsigned long long terms[2];
    fetch_memberships(first, terms);
    __syncthreads();
    const int columns =
        static_cast<int>(params_.clusters - first < kTile ? params_.clusters - first : kTile);
    TileSums scores;
    clear(scores);
    multiply(scores, first);
    find_terms(terms);
    Term next[2] = {open_term(terms[0], 0, first), open_term(terms[1], 1, first)};
    finish_scores(scores, columns);
    if (softmax_) {
      softmax_state_.weigh(scores, output_, positive(fabsf(scale_) * kLog2E),
                           [](int) { return 1.0f; });
    }
    __syncthreads();  // the keys give way to weights
    take_terms(scores, terms);
    __syncwarp();
    add_terms(terms, next, first);
    add_values(output_[0], scores, *value_tile_, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(*value_tile_, inter(), columns_->value_position, column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, *value_tile_, params_.value_dim - column);
    }
  }

  /// Queries times surrogates; the summaries arrive besides.
  __device__ void multiply(TileSums& scores, int64_t first) {
    if constexpr (kSmall) {
      const auto dim = static_cast<int>(params_.dim);
      const auto value_dim = static_cast<int>(params_.value_dim);
      VectorLoads keys, values;
      keys.begin(surrogates(), columns_->position, 0, dim);
      values.begin(inter(), columns_->value_position, 0, value_dim);
      if (first == 0) fetch_tile(*query_tiles_, query(), columns_->row_position, 0, dim);
      keys.end(*key_tile_, surrogates(), columns_->position, 0, dim);
      values.end(*value_tile_, inter(), columns_->value_position, 0, value_dim);
      tiles_arrive();
      __syncthreads();
      add_scores(scores, *query_tiles_, *key_tile_, dim);
    } else {
      fetch_tile(*value_tile_, inter(), columns_->value_position, first_value_, params_.value_dim);
      multiply_rows(scores, query_tiles_, params_.query_tiles, first == 0, query(),
                    columns_->row_position, *key_tile_, surrogates(), columns_->position,
                    params_.dim);
    }
  }

  /// By two warps.
  __device__ void open_cluster(int64_t first) {
    const int64_t cluster = first + threadIdx.x;
    const int64_t lists = params_.batch * params_.heads * params_.clusters;
    const bool real = cluster < params_.clusters;
    bool usable = real;
    if (real) {
      const int64_t list = sequence_ * params_.clusters + cluster;
      usable = params_.inter_not_finite[value_block_ * lists + list] == 0;
    }
    const auto position = static_cast<int32_t>(cluster);
    columns_->position[threadIdx.x] = real ? position : kNoRow;
    columns_->value_position[threadIdx.x] = usable ? position : kNoRow;
    const unsigned others = ballot(real && !usable);
    if (lane_index() == 0) columns_->not_finite[warp_index()] = others;
  }

  __device__ void finish_scores(TileSums& scores, int columns) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = columns_->row_factor[place.row(half)];
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        scores[n][2 * half] *= factor;
        scores[n][2 * half + 1] *= factor;
      }
    }
    bad_ |= finish_logits(scores, softmax_, params_.logit_factor(scale_), tokens_ - first_token_,
                          columns);
  }

  /// The place of a token in a cluster, or -1.
  __device__ int32_t slot_of(int64_t token, int64_t cluster) const {
    if (params_.slots != nullptr) {
      return params_.slots[(batch_ * params_.clusters + cluster) * params_.tokens + token];
    }
    const int64_t place = batch_ * params_.tokens + token;
    return params_.own_cluster[place] == cluster ? params_.own_slot[place] : -1;
  }

  /// Columns of row place.row(half) that hold its token.
  __device__ void fetch_memberships(int64_t first, unsigned long long (&terms)[2]) const {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token_ + place.row(half);
      terms[half] = token < tokens_ ? *params_.membership(batch_, first / kTile, token) : 0;
    }
  }

  /// Columns whose terms are added one by one: also those whose summaries are not finite.
  __device__ void find_terms(unsigned long long (&terms)[2]) {
    const TilePlace place;
    const unsigned long long others =
        static_cast<unsigned long long>(columns_->not_finite[1]) << 32 | columns_->not_finite[0];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      covered_[half] |= terms[half] != 0;
      if (first_token_ + place.row(half) < tokens_) terms[half] |= others;
    }
  }

  /// Moves the weights of the terms to shared memory.
  __device__ void take_terms(TileSums& weights, const unsigned long long (&terms)[2]) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (terms[half] == 0) continue;
      const unsigned long long mine = terms[half] >> place.pair;
      float* row = weights_ + place.row(half) * kTile;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if ((mine >> (8 * n + side) & 1) == 0) continue;
          row[place.column(n, side)] = weights[n][2 * half + side];
          weights[n][2 * half + side] = 0.0f;
        }
      }
    }
  }

  /// One term of a row.
  struct Term {
    int column;
    int32_t slot;
  };
  __device__ Term open_term(unsigned long long terms, int half, int64_t first) const {
    if (terms == 0) return {-1, -1};
    const TilePlace place;
    const int column = __ffsll(static_cast<long long>(terms)) - 1;
    return {column, slot_of(first_token_ + place.row(half), first + column)};
  }

  /// Adds the terms: members' rows of R_intra, and summaries that are not finite. The four lanes of
  /// a row go together; while a row is read, the place of the next one is looked up.
  __device__ void add_terms(unsigned long long (&terms)[2], Term (&next)[2], int64_t first) {
    while (any((terms[0] | terms[1]) != 0)) {
      const Term now[2] = {next[0], next[1]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        terms[half] &= terms[half] - 1;
        next[half] = open_term(terms[half], half, first);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (now[half].column >= 0) add_term(now[half], half, first);
      }
    }
  }

  __device__ void add_term(const Term& term, int half, int64_t first) {
    const TilePlace place;
    const float weight = weights_[place.row(half) * kTile + term.column];
    const int64_t list = sequence_ * params_.clusters + first + term.column;
    const float* source =
        term.slot >= 0
            ? params_.intra + (list * params_.cluster_size + term.slot) * params_.value_dim
            : params_.inter + list * params_.value_dim;
    const bool pairs = params_.value_dim % 2 == 0;
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) {
      float2 x[kTileColumns];
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        const int64_t element = first_value_ + t * kTile + place.column(n, 0);
        x[n] = make_float2(0.0f, 0.0f);
        if (pairs && element < params_.value_dim) {
          x[n] = *reinterpret_cast<const float2*>(source + element);
        } else {
          if (element < params_.value_dim) x[n].x = source[element];
          if (element + 1 < params_.value_dim) x[n].y = source[element + 1];
        }
      }
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        output_[t][n][2 * half] = fmaf(weight, x[n].x, output_[t][n][2 * half]);
        output_[t][n][2 * half + 1] = fmaf(weight, x[n].y, output_[t][n][2 * half + 1]);
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
      for (int t = 0; t < kValueTiles; ++t) {
        const int64_t first = first_value_ + t * kTile;
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            float& value = output_[t][n][2 * half + side];
            value = token < tokens_ ? value * normalizer : 0.0f;
            bad_ |= first + place.column(n, side) < params_.value_dim && !is_number(value);
          }
        }
        write_stored_row(params_.output.data, params_.storage, target + first,
                         params_.value_dim - first, output_[t], half);
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
  CombinationColumns* columns_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tile_;
  OperandTile<kSplit>* value_tile_;
  float* weights_;
  RowSoftmax softmax_state_;
  TileSums output_[kValueTiles];
  bool covered_[2] = {false, false};
  bool bad_ = false;
};

/// kSmall: dim and value_dim are at most 64, surrogates and summaries are read by vectors.
template <bool kSplit, bool kSmall>
__global__ void __launch_bounds__(kTileThreads, kSmall ? 4 : 2)
    cast_combination(const CastParams params) {
  // query: (64 of N,D), surrogates: (C,D), inter: (C,E), intra: (C,kappa,E) -> output: (64 of N,E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t rest = blockIdx.x / value_blocks;
  CombinationBlock<kSplit, kSmall>(params, rest / tiles, rest % tiles, blockIdx.x % value_blocks)
      .run();
}

}  // namespace cluster_attention::cuda
