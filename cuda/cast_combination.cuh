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

#include "cuda/cast_intra.cuh"
#include "cuda/cast_layout.cuh"
#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

template <bool kSplit, RowAccess kAccess>
class CombinationBlock {
 public:
  /// One tile has all elements of a query, another one those of a summary.
  static constexpr bool kSmall = kAccess != RowAccess::any;
  static constexpr int kValueTiles = kSmall ? 1 : kRowValueTiles;

  __device__ CombinationBlock(const CastParams& params, int64_t sequence, int64_t tile,
                              int64_t value_block)
      : params_(params),
        sequence_(static_cast<int>(sequence)),
        batch_(static_cast<int>(sequence / params.heads)),
        head_(static_cast<int>(sequence % params.heads)),
        group_(kSmall ? static_cast<int>(threadIdx.y) : 0),
        first_token_(static_cast<int>((tile * params.combination_groups + group_) * kTile)),
        tokens_(static_cast<int>(params.real_tokens(batch_))),
        value_block_(kSmall ? 0 : value_block),
        first_value_(value_block_ * kRowValueTiles * kTile),
        softmax_(params.activation == Activation::softmax),
        scale_(params.product_scale(params.clusters)) {
    const int query_tiles = params.combination_query_tiles;
    const CombinationLayout layout =
        combination_layout<kSplit, kAccess>(params.combination_groups, query_tiles);
    rows_ = dynamic_shared<CombinationRows>(layout.rows) + group_;
    columns_ = dynamic_shared<CombinationColumns>(layout.columns);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.query) + group_ * query_tiles;
    key_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    weights_ = dynamic_shared<TermWeight<kSplit>>(layout.weights) + group_ * kTile * kTile;
    value_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.values);
  }

  __device__ void run() {
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) clear(output_[t]);
    // All groups go the same way.
    if (first_token_ - group_ * kTile < tokens_) {
      open();
      const int count = static_cast<int>(tiles_of(params_.clusters));
      for (int step = 0; step < count; ++step) add_clusters(step, count);
    }
    write();
    if (bad_) mark_non_finite(params_.flags);
    if (params_.coverage != nullptr && head_ == 0 && value_block_ == 0) count_covered();
  }

 private:
  static constexpr int kStages = kCombinationStages<kSplit, kAccess>;

  // Made where they are read: kept, they would take a third of the registers.
  __device__ Rows query() const { return {params_.query, batch_, head_}; }
  __device__ Rows surrogates() const { return {params_.operand_surrogates, 0, head_}; }
  __device__ Rows inter() const {
    Rows rows;
    rows.data = params_.inter;
    rows.offset = sequence_ * params_.clusters * params_.value_dim;
    rows.stride = params_.value_dim;
    rows.storage = IntraRow<kSplit>::kStorage;
    return rows;
  }
  __device__ CombinationColumns& columns(int step) const { return columns_[step % (kStages + 1)]; }

  /// The tokens, and the first clusters.
  __device__ void open() {
    if (threadIdx.x >= kTile) open_token(static_cast<int>(threadIdx.x) - kTile);
    for (int step = 0; step < kStages; ++step) open_clusters(step, is_finite(step));
    __syncthreads();
    if constexpr (kSmall) {
      fetch_small_tile<kAccess>(query_tiles_[0], query(), rows_->position, params_.dim);
      if (kStages > 1) fetch(0);
    }
  }

  /// By one half of a group, while the other one opens the clusters.
  __device__ void open_token(int row) {
    const int token = first_token_ + row;
    const bool real = token < tokens_;
    rows_->position[row] = real ? token : kNoRow;
    rows_->factor[row] = real ? params_.query_factor[batch_ * params_.tokens + token] : 0.0f;
  }

  /// Whether the summary of this thread's cluster is finite; by two warps, as open_clusters().
  __device__ bool is_finite(int step) const {
    const int cluster = step * kTile + static_cast<int>(threadIdx.x);
    if (group_ > 0 || threadIdx.x >= kTile || cluster >= params_.clusters) return true;
    const int64_t lists = params_.batch * params_.heads * params_.clusters;
    const int64_t list = sequence_ * params_.clusters + cluster;
    return params_.inter_not_finite[value_block_ * lists + list] == 0;
  }
  __device__ void open_clusters(int step, bool finite) {
    if (group_ > 0 || threadIdx.x >= kTile) return;
    const int cluster = step * kTile + static_cast<int>(threadIdx.x);
    const int32_t position = cluster < params_.clusters ? cluster : kNoRow;
    columns(step).position[threadIdx.x] = position;
    columns(step).value_position[threadIdx.x] = finite ? position : kNoRow;
    const unsigned others = ballot(!finite);
    if (lane_index() == 0) columns(step).not_finite[warp_index()] = others;
  }

  /// Of small tiles: the surrogates by the first group, the summaries by the last one.
  __device__ void fetch(int step) {
    if (group_ == 0) {
      fetch_small_tile<kAccess>(key_tiles_[step % kStages], surrogates(), columns(step).position,
                                params_.dim);
    }
    if (group_ == params_.combination_groups - 1) {
      fetch_small_tile<kAccess>(value_tiles_[step % kStages], inter(), columns(step).value_position,
                                params_.value_dim);
    }
  }

  __device__ void add_clusters(int step, int count) {
    const int64_t first = static_cast<int64_t>(step) * kTile;
    const int later = step + kStages;
    const bool later_finite = is_finite(later);
    OperandTile<kSplit>& values = value_tiles_[step % kStages];
    unsigned long long terms[2];
    fetch_memberships(step, terms);
    TileSums scores;
    clear(scores);
    multiply(scores, step, count);
    find_terms(step, terms);
    Term next[2] = {open_term(terms[0], 0, step), open_term(terms[1], 1, step)};
    const int64_t rest = params_.clusters - first;
    finish_scores(scores, static_cast<int>(rest < kTile ? rest : kTile));
    if (softmax_) {
      softmax_state_.weigh(scores, output_, positive(fabsf(scale_) * kLog2E),
                           [](int) { return 1.0f; });
    }
    if (kStages == 1) __syncthreads();  // the keys give way to weights
    take_terms(scores, terms);
    __syncwarp();
    add_terms(terms, next, step);
    add_small_values<kAccess>(output_[0], scores, values, params_.value_dim - first_value_);
#pragma unroll
    for (int t = 1; t < kValueTiles; ++t) {
      const int64_t column = first_value_ + t * kTile;
      if (column >= params_.value_dim) break;
      __syncthreads();
      load_tile(values, inter(), columns(step).value_position, column, params_.value_dim);
      __syncthreads();
      add_values(output_[t], scores, values, params_.value_dim - column);
    }
    open_clusters(later, later_finite);
  }

  /// Queries times surrogates; the summaries arrive besides, and those of the next clusters leave.
  __device__ void multiply(TileSums& scores, int step, int count) {
    if (kStages == 1 && step > 0) __syncthreads();  // the tiles before are used up
    if constexpr (kSmall) {
      if (kStages == 1) fetch(step);
      tiles_arrive();
      __syncthreads();
      if (kStages > 1 && step + 1 < count) fetch(step + 1);
      add_small_scores<kAccess>(scores, *query_tiles_, key_tiles_[step % kStages], params_.dim);
    } else {
      fetch_tile(*value_tiles_, inter(), columns(step).value_position, first_value_,
                 params_.value_dim);
      multiply_rows(scores, query_tiles_, params_.combination_query_tiles, step == 0, query(),
                    rows_->position, *key_tiles_, surrogates(), columns(step).position,
                    params_.dim);
    }
  }

  __device__ void finish_scores(TileSums& scores, int columns) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = rows_->factor[place.row(half)];
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        scores[n][2 * half] *= factor;
        scores[n][2 * half + 1] *= factor;
      }
    }
    bad_ |= finish_logits(scores, softmax_, params_.logit_factor(scale_), tokens_ - first_token_,
                          columns);
  }

  /// Clusters of a tile that hold the tokens of this thread's rows.
  __device__ void fetch_memberships(int step, unsigned long long (&members)[2]) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first_token_ + place.row(half);
      members[half] = token < tokens_ ? *params_.membership(batch_, step, token) : 0;
      covered_[half] |= members[half] != 0;
    }
  }

  /// Columns whose terms are added one by one: also those whose summaries are not finite.
  __device__ void find_terms(int step, unsigned long long (&terms)[2]) const {
    const TilePlace place;
    const uint32_t* bits = columns(step).not_finite;
    const unsigned long long others = static_cast<unsigned long long>(bits[1]) << 32 | bits[0];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
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
      TermWeight<kSplit>* row = weights_ + place.row(half) * kTile;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if ((mine >> (8 * n + side) & 1) == 0) continue;
          row[place.column(n, side)] = from_float<TermWeight<kSplit>>(weights[n][2 * half + side]);
          weights[n][2 * half + side] = 0.0f;
        }
      }
    }
  }

  /// One term of a row; the last slot is the summary.
  struct Term {
    int column;
    int32_t slot;
  };
  __device__ Term open_term(unsigned long long terms, int half, int step) const {
    if (terms == 0) return {-1, -1};
    const TilePlace place;
    const int token = first_token_ + place.row(half);
    const int column = __ffsll(static_cast<long long>(terms)) - 1;
    const bool finite = (columns(step).not_finite[column / 32] >> column % 32 & 1) == 0;
    const bool member = finite || (*params_.membership(batch_, step, token) >> column & 1) != 0;
    if (!member) return {column, static_cast<int32_t>(params_.cluster_size)};
    return {column, params_.member_slot(batch_, step * kTile + column, token)};
  }

  /// Adds the terms: members' rows of R_intra, and summaries that are not finite. The four lanes of
  /// a row go together; while a row is read, the place of the next one is looked up.
  __device__ void add_terms(unsigned long long (&terms)[2], Term (&next)[2], int step) {
    constexpr int kTogether = kSplit ? 1 : 2;  // rows on their way: those of floats take registers
    while (any((terms[0] | terms[1]) != 0)) {
      const Term now[2] = {next[0], next[1]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        terms[half] &= terms[half] - 1;
        next[half] = open_term(terms[half], half, step);
      }
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
        const int64_t column = first_value_ + t * kTile;
        if (column >= params_.value_dim) break;
#pragma unroll
        for (int half = 0; half < 2; half += kTogether) {
          LaneRow<kSplit> rows[kTogether] = {};
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            const Term& term = now[half + i];
            if (term.column >= 0) row_of(term, step, column).load(rows[i]);
          }
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            const Term& term = now[half + i];
            if (term.column >= 0) add_row(output_[t], rows[i], term, half + i);
          }
        }
      }
    }
  }

  /// Columns [first, first + 64) of a term.
  __device__ IntraRow<kSplit> row_of(const Term& term, int step, int64_t first) const {
    const int64_t list = sequence_ * params_.clusters + step * kTile + term.column;
    return {params_, list, term.slot, first};
  }
  __device__ void add_row(TileSums& output, const LaneRow<kSplit>& row, const Term& term,
                          int half) const {
    const TilePlace place;
    const float weight = to_float(weights_[place.row(half) * kTile + term.column]);
#pragma unroll
    for (int i = 0; i < 2 * kTileColumns; ++i) {
      float& sum = output[i / 2][2 * half + i % 2];
      sum = fmaf(weight, row.value(i), sum);
    }
  }

  __device__ void write() {
    const TilePlace place;
    NumberCheck numbers;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first_token_ + place.row(half);
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
            numbers.add(2 * half + side, value);  // past the last column as cast_clusters.cuh
          }
        }
        write_whole_row(params_.output.data, params_.storage, target + first,
                        params_.value_dim - first, output_[t], half);
      }
    }
    bad_ |= !numbers.passed();
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
    const auto blocks = static_cast<uint32_t>(combination_blocks(params_));
    __syncthreads();
    if (!last_block_done(params_.tickets + batch_, blocks, columns_->not_finite)) return;
    if (threadIdx.x == 0 && group_ == 0) {
      // As an atomic, so that it is what all blocks have added up.
      const int32_t total = atomicAdd(params_.covered + batch_, 0);
      params_.coverage[batch_] =
          tokens_ == 0 ? 1.0 : static_cast<double>(total) / static_cast<double>(tokens_);
    }
  }

  const CastParams& params_;
  // All fit, and 64 bits would take registers.
  const int sequence_;
  const int batch_;
  const int head_;
  const int group_;
  const int first_token_;
  const int tokens_;
  const int64_t value_block_;
  const int64_t first_value_;
  const bool softmax_;
  const float scale_;
  CombinationRows* rows_;
  CombinationColumns* columns_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tiles_;
  OperandTile<kSplit>* value_tiles_;
  TermWeight<kSplit>* weights_;
  RowSoftmax softmax_state_;
  TileSums output_[kValueTiles];
  bool covered_[2] = {false, false};
  bool bad_ = false;
};

/// kAccess: how surrogates and summaries are read where dim and value_dim are at most 64, else
/// `any`.
template <bool kSplit, RowAccess kAccess>
__global__ void __launch_bounds__(kAccess == RowAccess::any ? kTileThreads
                                                            : kTileThreads * kMostCombinationGroups,
                                  2) cast_combination(const CastParams params) {
  // query: (64 of N,D), surrogates: (C,D), inter: (C,E), intra: (C,kappa,E) -> output: (64 of N,E)
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  const ClusterTile at(blockIdx.x, value_blocks, combination_blocks(params), 1);
  CombinationBlock<kSplit, kAccess>(params, at.sequence, at.tile, at.column_block).run();
}

}  // namespace cluster_attention::cuda
