#pragma once

// Steps 1 and 2 of CAST (§7):
//
//   A_q = sum over heads of q S^T, A_k = sum over heads of k S^T       (N,C)
//   A_g = sigma(phi) f(A_q) + (1 - sigma(phi)) f(A_k), f over the clusters
//
// Method: one block per 64 tokens, in groups of four warps that have 64 clusters each: a tile of
// queries and one of keys meet the surrogates of all groups. Both sides are summed over the heads
// on tensor cores. Where the groups hold all clusters, A_g is made in the registers; with more, the
// raw sums are stored, and the thread that has stored a sum reads it again when the last cluster
// has been seen. The maximum and the sum of a token's row are joined tile by tile in the order of
// the clusters, so that nothing depends on the number of groups. Where 64 clusters are all and rows
// are read fast, two groups take one side each (kApart), and then half of the rows: what takes time
// is how long a warp's instructions wait for each other. Gates in double precision.

#include "cuda/assignment_softmax.cuh"
#include "cuda/cast_layout.cuh"

namespace cluster_attention::cuda {

template <bool kSplit, RowAccess kAccess, bool kApart>
class AffinityBlock {
 public:
  __device__ AffinityBlock(const CastParams& params, int64_t batch, int64_t tile)
      : params_(params),
        batch_(batch),
        first_(tile * kTile),
        tokens_(params.real_tokens(batch)),
        group_(kApart ? 0 : static_cast<int>(threadIdx.y)),
        groups_(kApart ? 1 : static_cast<int>(blockDim.y)) {
    const AffinityLayout layout = affinity_layout<kSplit>(groups_);
    data_ = dynamic_shared<AffinityData>(layout.data);
    surrogate_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.surrogates);
    row_tiles_ = dynamic_shared<OperandTile<kSplit>>(layout.rows);
    matrix_ = batch * params.clusters * params.tokens;
  }

  __device__ void run() {
    if (first_ >= tokens_) return;
    if (threadIdx.y == 0) open_rows(data_->token, first_, tokens_);
    const bool softmax = params_.activation == Activation::softmax;
    const int64_t step = groups_ * kTile;
    const bool at_once = params_.clusters <= step;
    for (int64_t first = group_ * kTile; first - group_ * kTile < params_.clusters; first += step) {
      multiply(first);
      if (softmax) join_sums();
      if (!at_once) store(first);
    }
    __syncthreads();  // the gates are there
    for (int64_t first = group_ * kTile; first - group_ * kTile < params_.clusters; first += step) {
      if (!at_once) fetch_stored(first);
      mix(first);
    }
    if (params_.selection == Selection::single_assignment) rank();
    if (bad_) mark_non_finite(params_.flags);
  }

 private:
  static constexpr int kStages = kAffinityStages<kSplit>;
  /// Sides of a group, of which with kApart the only one has the group's number.
  static constexpr int kSides = kApart ? 1 : kAffinitySides;
  __device__ static int side_of(int i) { return kApart ? static_cast<int>(threadIdx.y) : i; }

  /// A product over up to 64 elements of a head.
  struct Step {
    int64_t head = 0;
    int64_t first = 0;
    int stage = 0;
  };
  __device__ Step after(Step step) const {
    step.first += kTile;
    if (step.first >= params_.dim) {
      step.first = 0;
      ++step.head;
    }
    step.stage = (step.stage + 1) % kStages;
    return step;
  }
  __device__ bool exists(const Step& step) const {
    return step.head < params_.heads && params_.dim > 0;
  }
  __device__ OperandTile<kSplit>& surrogates(const Step& step) const {
    return surrogate_tiles_[step.stage * groups_ + group_];
  }
  __device__ OperandTile<kSplit>& rows(const Step& step, int side) const {
    return row_tiles_[step.stage * kAffinitySides + side];
  }
  /// Clusters of the group's tile, none or fewer past the last one.
  __device__ int columns_from(int64_t first) const {
    const int64_t columns = params_.clusters - first;
    return static_cast<int>(columns < kTile ? columns : kTile);
  }

  /// Raw sums over the heads of clusters [first, first + 64); under softmax -Inf past the last one.
  __device__ void multiply(int64_t first) {
    __syncthreads();  // the positions of the clusters before are used up
    if (!kApart || threadIdx.y == 0) {
      open_rows(data_->cluster[group_], first, params_.clusters);
    }
    __syncthreads();
#pragma unroll
    for (TileSums& scores : scores_) clear(scores);
    Step step;
    if (exists(step)) {
      begin(step);
      end(step);
    }
    if (first == 0) open_gates();
    while (exists(step)) {
      tiles_arrive();
      __syncthreads();
      const Step next = after(step);
      if (kStages > 1 && exists(next)) begin(next);
      add_products(step);
      if (kStages == 1 && exists(next)) {
        __syncthreads();  // the tiles are used up
        begin(next);
      }
      if (exists(next)) end(next);
      step = next;
    }
    const TilePlace place;
    const int columns =
        params_.activation == Activation::softmax ? columns_from(first) : static_cast<int>(kTile);
#pragma unroll
    for (TileSums& scores : scores_) {
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          bad_ |= !is_number(scores[n][i]);
          if (place.column(n, i % 2) >= columns) scores[n][i] = -INFINITY;
        }
      }
    }
  }

  /// Both sides by the same surrogates, which are read once.
  __device__ void add_products(const Step& step) {
    const ScorePlaces place;
    const OperandTile<kSplit>& columns = surrogates(step);
    const int depth = tile_count(step.first, params_.dim);
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      if (k >= depth) break;
      FragmentA high[kSides], low[kSides];
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
        const OperandTile<kSplit>& tile = rows(step, side_of(side));
        load_tiles(high[side], tile.high + place.rows + k);
        if constexpr (kSplit) load_tiles(low[side], tile.low + place.rows + k);
      }
#pragma unroll
      for (int n = 0; n < kTileColumns; n += 2) {
        uint32_t b_high[4], b_low[4];
        load_tiles(b_high, columns.high + place.columns + 8 * n * kTilePitch + k);
        if constexpr (kSplit)
          load_tiles(b_low, columns.low + place.columns + 8 * n * kTilePitch + k);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const FragmentB high_b = {b_high[2 * i], b_high[2 * i + 1]};
#pragma unroll
          for (int side = 0; side < kSides; ++side) {
            FragmentD& sums = scores_[side][n + i];
            if constexpr (kSplit) {
              const FragmentB low_b = {b_low[2 * i], b_low[2 * i + 1]};
              mma_split_16x8x16(sums, high[side], low[side], high_b, low_b);
            } else {
              mma_bf16_16x8x16(sums, high[side], high_b);
            }
          }
        }
      }
    }
  }

  /// Sets the loads of a step off: the first group's those of queries, the last one's those of
  /// keys. The surrogates, which are floats, pass registers.
  __device__ void begin(const Step& step) {
    if constexpr (kAccess != RowAccess::any) {
      loads_.begin(Rows(params_.surrogates, 0, step.head), data_->cluster[group_], step.first,
                   tile_count(step.first, params_.dim));
    }
    Rows query(params_.query, batch_, step.head);
    Rows key(params_.key, batch_, step.head);
    if constexpr (kApart) {
      query.offset += step.first;
      key.offset += step.first;
      const int64_t width = params_.dim - step.first;
      if (side_of(0) == 0) {
        fetch_small_tile<kAccess>(rows(step, 0), query, data_->token, width);
      } else {
        fetch_small_tile<kAccess>(rows(step, 1), key, data_->token, width);
      }
      return;
    }
    if (kSplit && groups_ == 1) {
      fetch_tiles<kAccess>(rows(step, 0), query, step.first, params_.dim, rows(step, 1), key,
                           step.first, params_.dim, data_->token);
      return;
    }
    if (group_ == 0) {
      fetch_tile<kAccess>(rows(step, 0), query, data_->token, step.first, params_.dim);
    }
    if (group_ == groups_ - 1) {
      fetch_tile<kAccess>(rows(step, 1), key, data_->token, step.first, params_.dim);
    }
  }

  /// Puts the surrogates of a step in their tile.
  __device__ void end(const Step& step) {
    const Rows from(params_.surrogates, 0, step.head);
    const int32_t* position = data_->cluster[group_];
    if constexpr (kApart) {
      loads_.end(surrogates(step));
    } else if constexpr (kAccess != RowAccess::any) {
      loads_.end(surrogates(step), from, position, step.first, tile_count(step.first, params_.dim));
    } else {
      fetch_tile(surrogates(step), from, position, step.first, params_.dim);
    }
  }

  __device__ void open_gates() {
    const int64_t token = first_ + threadIdx.x;
    if (threadIdx.y > 0 || threadIdx.x >= kTile || token >= tokens_) return;
    data_->gates[threadIdx.x] = open_gate(params_, batch_, token);
    params_.clear_memberships(batch_, token);
  }

  /// Takes the clusters of all groups into the maxima and the sums of the rows.
  __device__ void join_sums() {
    const TilePlace place;
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
      const int side = side_of(i);
      InputSums mine;
      mine.add(scores_[i], kLog2E);
      mine.join(kLog2E);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (place.pair != 0) continue;
        data_->maximum[side][group_][place.row(half)] = mine.maximum[half];
        data_->sum[side][group_][place.row(half)] = mine.sum[half];
      }
    }
    __syncthreads();
    for (int group = 0; group < groups_; ++group) {
#pragma unroll
      for (int side = 0; side < kSides; ++side) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float maximum = data_->maximum[side_of(side)][group][place.row(half)];
          const float sum = data_->sum[side_of(side)][group][place.row(half)];
          float& joint = sums_[side].maximum[half];
          float& total = sums_[side].sum[half];
          const float larger = fmaxf(joint, maximum);
          total = total * rescale(joint, larger, kLog2E) + sum * rescale(maximum, larger, kLog2E);
          joint = larger;
        }
      }
    }
  }

  /// body(n, i, element) for what this thread has of a matrix in clusters [first, first + 64).
  template <typename Body>
  __device__ void for_each(float* matrix, int64_t first, const Body& body) const {
    const TilePlace place;
    const int columns = columns_from(first);
    const int64_t stride = params_.cluster_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_ + place.row(half);
      if (token >= tokens_ || (kApart && half != side_of(0))) continue;
      float* element =
          matrix + matrix_ + token * params_.token_stride + (first + place.column(0, 0)) * stride;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        if (place.column(n, 0) < columns) body(n, 2 * half, element[0]);
        if (place.column(n, 1) < columns) body(n, 2 * half + 1, element[stride]);
        element += 8 * stride;
      }
    }
  }

  __device__ float* matrix_of(int side) const {
    return side == 0 ? params_.affinity : params_.key_affinity;
  }
  __device__ void store(int64_t first) {
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      for_each(matrix_of(side), first,
               [&](int n, int i, float& element) { element = scores_[side][n][i]; });
    }
  }
  __device__ void fetch_stored(int64_t first) {
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      for_each(matrix_of(side), first,
               [&](int n, int i, const float& element) { scores_[side][n][i] = element; });
    }
  }

  /// A_g of raw sums.
  __device__ void mix(int64_t first) {
    const TilePlace place;
    const bool softmax = params_.activation == Activation::softmax;
    TileSums& mixed = scores_[0];
    float factors[2];  // kApart
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      TileSums& scores = scores_[side];
      if (!softmax) laplace_of_all(scores);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Gates gates = data_->gates[place.row(half)];
        const float gate = side_of(side) == 0 ? gates.query_gate : gates.key_gate;
        const float maximum = sums_[side].maximum[half];
        const float factor = softmax ? gate / sums_[side].sum[half] : gate;
        factors[half] = factor;
#pragma unroll
        for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            if (softmax) scores[n][i] = exp2_fast((scores[n][i] - maximum) * kLog2E);
            if (kApart) continue;
            mixed[n][i] =
                side == 0 ? factor * scores[n][i] : fmaf(factor, scores[n][i], mixed[n][i]);
          }
        }
      }
    }
    if constexpr (kApart) {
      static_assert(kMixedHalves <= kStages * kAffinitySides * sizeof(OperandTile<kSplit>));
      mix_halves(mixed, factors, reinterpret_cast<float*>(row_tiles_));  // which are used up
    }
    for_each(params_.affinity, first, [&](int n, int i, float& element) { element = mixed[n][i]; });
    if (params_.selection != Selection::single_assignment) return;
    for_each(params_.affinity, first, [&](int n, int i, const float&) {
      const uint32_t rank = ordered_key(mixed[n][i]);
      best_[i / 2] = rank > best_[i / 2] ? rank : best_[i / 2];
    });
  }

  /// Each token with its best affinity, for single assignment.
  __device__ void rank() {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t best = warp_max(best_[half], 4);
      if (kApart && half != side_of(0)) continue;
      if (place.pair == 0) data_->best[group_][place.row(half)] = best;
    }
    __syncthreads();
    const int64_t token = first_ + threadIdx.x;
    if (threadIdx.y > 0 || threadIdx.x >= kTile || token >= tokens_) return;
    uint32_t best = 0;
    for (int group = 0; group < groups_; ++group) {
      const uint32_t other = data_->best[group][threadIdx.x];
      best = other > best ? other : best;
    }
    params_.order[batch_ * params_.order_size + token] =
        make_candidate(value_of_key(best), static_cast<int32_t>(token));
  }

  const CastParams& params_;
  const int64_t batch_;
  const int64_t first_;
  const int64_t tokens_;
  const int group_;
  const int groups_;
  int64_t matrix_;
  AffinityData* data_;
  OperandTile<kSplit>* surrogate_tiles_;
  OperandTile<kSplit>* row_tiles_;
  std::conditional_t<kApart, HalfLoads, VectorLoads> loads_;  // of the surrogates
  TileSums scores_[kSides];
  InputSums sums_[kSides];
  uint32_t best_[2] = {0, 0};
  bool bad_ = false;
};

/// kAccess: how queries and keys are read where the surrogates are read by vectors, else `any`.
template <bool kSplit, RowAccess kAccess, bool kApart>
__global__ void __launch_bounds__(kTileThreads*(kApart ? kAffinitySides : kAffinityGroups<kSplit>),
                                  kApart ? 2 : 1) cast_affinity(const CastParams params) {
  // surrogates: (H,C,D), query, key: (H, 64 of N, D) -> affinity: (C, 64 of N)
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t batch = blockIdx.x / tiles;
  const bool first_thread = threadIdx.x == 0 && threadIdx.y == 0;
  if (blockIdx.x % tiles == 0 && first_thread) params.covered[batch] = 0;
  AffinityBlock<kSplit, kAccess, kApart>(params, batch, blockIdx.x % tiles).run();
}

}  // namespace cluster_attention::cuda
