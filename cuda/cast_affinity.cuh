#pragma once

// Steps 1 and 2 of CAST (§7):
//
//   A_q = sum over heads of q S^T, A_k = sum over heads of k S^T       (N,C)
//   A_g = sigma(phi) f(A_q) + (1 - sigma(phi)) f(A_k), f over the clusters
//
// Method: one block per 64 tokens; tiles of 64 tokens x 64 clusters of both sides, summed over the
// heads on tensor cores. With at most 64 clusters A_g is made of both in the registers; with more,
// the raw sums are stored, the softmax of each token's row is kept online, and the thread that has
// stored a sum reads it again when the last cluster has been seen. Gates in double precision.

#include "cuda/assignment_softmax.cuh"
#include "cuda/cast_params.cuh"

namespace cluster_attention::cuda {

struct AffinityData {
  int32_t token[kTile];
  int32_t cluster[kTile];
  Gates gates[kTile];
};

/// Without a split tiles are small: those of the next head are on their way while these are used.
template <bool kSplit>
constexpr int kAffinityStages = kSplit ? 1 : 2;

struct AffinityLayout {
  int64_t data;
  int64_t surrogates;
  int64_t queries;
  int64_t keys;
  int64_t bytes;
};

template <bool kSplit>
CA_HOST_DEVICE AffinityLayout affinity_layout() {
  SharedLayout parts;
  AffinityLayout layout;
  layout.data = parts.add<AffinityData>(1);
  layout.surrogates = parts.add<OperandTile<kSplit>>(kAffinityStages<kSplit>);
  layout.queries = parts.add<OperandTile<kSplit>>(kAffinityStages<kSplit>);
  layout.keys = parts.add<OperandTile<kSplit>>(kAffinityStages<kSplit>);
  layout.bytes = parts.bytes();
  return layout;
}

template <bool kSplit, RowAccess kAccess>
class AffinityBlock {
 public:
  __device__ AffinityBlock(const CastParams& params, int64_t batch, int64_t tile)
      : params_(params), batch_(batch), first_(tile * kTile), tokens_(params.real_tokens(batch)) {
    const AffinityLayout layout = affinity_layout<kSplit>();
    data_ = dynamic_shared<AffinityData>(layout.data);
    surrogate_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.surrogates);
    query_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.queries);
    key_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.keys);
    matrix_ = batch * params.clusters * params.tokens;
  }

  __device__ void run() {
    if (first_ >= tokens_) return;
    open_rows(data_->token, first_, tokens_);
    const bool softmax = params_.activation == Activation::softmax;
    const bool single = params_.clusters <= kTile;
    InputSums query_sums, key_sums;
    for (int64_t first = 0; first < params_.clusters; first += kTile) {
      multiply(first);
      if (softmax && single) {
        query_sums.exponentiate(query_scores_, kLog2E);
        key_sums.exponentiate(key_scores_, kLog2E);
      } else if (softmax) {
        query_sums.add(query_scores_, kLog2E);
        key_sums.add(key_scores_, kLog2E);
      }
      if (!single) store(first);
    }
    if (softmax && !single) {
      query_sums.join(kLog2E);
      key_sums.join(kLog2E);
    }
    __syncthreads();  // the gates are there
    for (int64_t first = 0; first < params_.clusters; first += kTile) {
      if (!single) fetch_sums(first, query_sums, key_sums);
      mix(first, query_sums, key_sums);
    }
    if (params_.selection == Selection::single_assignment) rank();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  static constexpr int kStages = kAffinityStages<kSplit>;

  /// Raw sums over the heads of clusters [first, first + 64); under softmax -Inf past the last one.
  __device__ void multiply(int64_t first) {
    __syncthreads();  // the positions of the clusters before are used up
    open_rows(data_->cluster, first, params_.clusters);
    __syncthreads();
    clear(query_scores_);
    clear(key_scores_);
    const int64_t chunks = tiles_of(params_.dim);
    const int64_t steps = params_.heads * chunks;
    if (steps > 0) {
      begin(0, chunks);
      end(0, chunks);
    }
    if (first == 0) open_gates();
    for (int64_t step = 0; step < steps; ++step) {
      tiles_arrive();
      __syncthreads();
      if (kStages > 1 && step + 1 < steps) begin(step + 1, chunks);
      const int64_t depth = params_.dim - step % chunks * kTile;
      const OperandTile<kSplit>& surrogates = surrogate_tiles_[step % kStages];
      add_scores(query_scores_, query_tiles_[step % kStages], surrogates, depth);
      add_scores(key_scores_, key_tiles_[step % kStages], surrogates, depth);
      if (kStages == 1 && step + 1 < steps) {
        __syncthreads();  // the tiles are used up
        begin(step + 1, chunks);
      }
      if (step + 1 < steps) end(step + 1, chunks);
    }
    const TilePlace place;
    const bool softmax = params_.activation == Activation::softmax;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bad_ |= !is_number(query_scores_[n][i]) || !is_number(key_scores_[n][i]);
        if (softmax && first + place.column(n, i % 2) >= params_.clusters) {
          query_scores_[n][i] = key_scores_[n][i] = -INFINITY;
        }
      }
    }
  }

  /// Sets the loads of a step off; the surrogates, which are floats, pass registers.
  __device__ void begin(int64_t step, int64_t chunks) {
    const int64_t head = step / chunks;
    const int64_t first = step % chunks * kTile;
    const int stage = static_cast<int>(step % kStages);
    if constexpr (kAccess != RowAccess::any) {
      loads_.begin(Rows(params_.surrogates, 0, head), data_->cluster, first,
                   tile_count(first, params_.dim));
    }
    fetch_tiles<kAccess>(query_tiles_[stage], Rows(params_.query, batch_, head), first, params_.dim,
                         key_tiles_[stage], Rows(params_.key, batch_, head), first, params_.dim,
                         data_->token);
  }

  /// Puts the surrogates of a step in their tile.
  __device__ void end(int64_t step, int64_t chunks) {
    const Rows surrogates(params_.surrogates, 0, step / chunks);
    const int64_t first = step % chunks * kTile;
    OperandTile<kSplit>& tile = surrogate_tiles_[step % kStages];
    if constexpr (kAccess != RowAccess::any) {
      loads_.end(tile, surrogates, data_->cluster, first, tile_count(first, params_.dim));
    } else {
      fetch_tile(tile, surrogates, data_->cluster, first, params_.dim);
    }
  }

  __device__ void open_gates() {
    const int64_t token = first_ + threadIdx.x;
    if (threadIdx.x >= kTile || token >= tokens_) return;
    data_->gates[threadIdx.x] = open_gate(params_, batch_, token);
    params_.clear_memberships(batch_, token);
  }

  /// body(n, i, place in the matrices) for what this thread has of clusters [first, first + 64).
  template <typename Body>
  __device__ void for_each(int64_t first, const Body& body) const {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_ + place.row(half);
      if (token >= tokens_) continue;
      int64_t target = matrix_ + token * params_.token_stride +
                       (first + place.column(0, 0)) * params_.cluster_stride;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if (first + place.column(n, side) < params_.clusters) body(n, 2 * half + side, target);
          target += (side == 0 ? 1 : 7) * params_.cluster_stride;
        }
      }
    }
  }

  __device__ void store(int64_t first) {
    for_each(first, [this](int n, int i, int64_t target) {
      params_.affinity[target] = query_scores_[n][i];
      params_.key_affinity[target] = key_scores_[n][i];
    });
  }

  /// The exponentials, or the raw sums, of what store() has kept.
  __device__ void fetch_sums(int64_t first, const InputSums& query_sums,
                             const InputSums& key_sums) {
    const bool softmax = params_.activation == Activation::softmax;
    for_each(first, [&](int n, int i, int64_t target) {
      const float query = params_.affinity[target];
      const float key = params_.key_affinity[target];
      query_scores_[n][i] =
          softmax ? exp2_fast((query - query_sums.maximum[i / 2]) * kLog2E) : query;
      key_scores_[n][i] = softmax ? exp2_fast((key - key_sums.maximum[i / 2]) * kLog2E) : key;
    });
  }

  /// A_g of exponentials or raw sums.
  __device__ void mix(int64_t first, const InputSums& query_sums, const InputSums& key_sums) {
    const TilePlace place;
    const bool softmax = params_.activation == Activation::softmax;
    float query_factor[2], key_factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Gates gates = data_->gates[place.row(half)];
      query_factor[half] = softmax ? gates.query_gate / query_sums.sum[half] : gates.query_gate;
      key_factor[half] = softmax ? gates.key_gate / key_sums.sum[half] : gates.key_gate;
    }
    if (!softmax) {
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          query_scores_[n][i] = laplace(query_scores_[n][i]);
          key_scores_[n][i] = laplace(key_scores_[n][i]);
        }
      }
    }
    for_each(first, [&](int n, int i, int64_t target) {
      const float affinity =
          query_factor[i / 2] * query_scores_[n][i] + key_factor[i / 2] * key_scores_[n][i];
      params_.affinity[target] = affinity;
      const uint32_t rank = ordered_key(affinity);
      best_[i / 2] = rank > best_[i / 2] ? rank : best_[i / 2];
    });
  }

  /// Each token with its best affinity, for single assignment.
  __device__ void rank() {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t best = warp_max(best_[half], 4);
      const int64_t token = first_ + place.row(half);
      if (token >= tokens_ || place.pair != 0) continue;
      params_.order[batch_ * params_.order_size + token] =
          make_candidate(value_of_key(best), static_cast<int32_t>(token));
    }
  }

  const CastParams& params_;
  const int64_t batch_;
  const int64_t first_;
  const int64_t tokens_;
  int64_t matrix_;
  AffinityData* data_;
  OperandTile<kSplit>* surrogate_tiles_;
  OperandTile<kSplit>* query_tiles_;
  OperandTile<kSplit>* key_tiles_;
  VectorLoads loads_;  // of the surrogates
  TileSums query_scores_;
  TileSums key_scores_;
  uint32_t best_[2] = {0, 0};
  bool bad_ = false;
};

/// kAccess: how queries and keys are read where the surrogates are read by vectors, else `any`.
template <bool kSplit, RowAccess kAccess>
__global__ void __launch_bounds__(kTileThreads, 2) cast_affinity(const CastParams params) {
  // surrogates: (H,C,D), query, key: (H, 64 of N, D) -> affinity: (C, 64 of N)
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t batch = blockIdx.x / tiles;
  if (blockIdx.x % tiles == 0 && threadIdx.x == 0) params.covered[batch] = 0;
  AffinityBlock<kSplit, kAccess>(params, batch, blockIdx.x % tiles).run();
}

}  // namespace cluster_attention::cuda
