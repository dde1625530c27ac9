#pragma once

// §1 Backward of exact attention on Hopper: what gradient_pass.cuh computes, by warpgroup products
// (wgmma) of bfloat16.
//
// Method: as in gradient_tile.cuh, keys own dk and dv, queries own dq, seven products and nothing
// atomic. A block has up to two warpgroups of consumers, each with 64 rows of its own, which stay
// in registers as operands (in shared memory with 128 columns), and one of producers, which fills a
// ring of tiles of 64 met rows ahead of them. A consumer starts the scores and changes of a tile,
// then the sums of the tile before; while the latter run it takes the weights of the former. p and
// dz never leave registers.
// Precision: bfloat16 operands, p and dz rounded to it, float32 sums over the met rows in order,
// whoever shares the block. Limits: D, E <= kWidth; a GPU with sm_90a. A NaN reaches, with the
// causal mask, also hidden pairs of the same 64 own and 64 met rows (at most 126 rows away).

#include "cuda/attention_gradient_hopper_ring.cuh"
#include "cuda/attention_gradient_hopper_rows.cuh"

namespace cluster_attention::cuda {

#if CA_HAS_WARPGROUP_PRODUCTS

/// A warpgroup with 64 rows of its own.
template <int kWidth, bool kOwnsKeys>
class GradientConsumer {
 public:
  using Sizes = GradientRingSizes<kWidth>;
  static constexpr int kRows = Sizes::kRows;
  static constexpr int kSums = kWidth / 2;  // of a thread
  /// Whether there are registers for a tile's scores and changes beside p and dz of another.
  static constexpr bool kOverlaps = kWidth == 64 || !kOwnsKeys;

  __device__ GradientConsumer(const GradientPassParams& params, const GradientRingTask& task,
                              const GradientRing<kWidth>& ring, const GradientPlace& place)
      : params_(params),
        pass_(params.pass),
        task_(task),
        ring_(ring),
        // The same for a warp, and known to be, so that it is kept in uniform registers.
        warpgroup_(shuffle(static_cast<int>(threadIdx.x) / kWarpgroup, 0)),
        tiles_place_(shuffle(shared_address(ring.tiles) >> 4, 0)),
        own_place_(shuffle(locate_tile(own_tile(0)), 0)),
        own_(task.begin + warpgroup_ * kRows) {
    const TileRange seen = visible_tiles<kOwnsKeys>(pass_, place, own_, own_ + kRows);
    first_ = shuffle(seen.first, 0);
    end_ = shuffle(seen.end, 0);
    for (int i = 0; i < kSums; ++i) first_sums_[i] = 0.0f;
    if (kOwnsKeys) {
      for (int i = 0; i < kSums; ++i) second_sums_[i] = 0.0f;
    }
  }

  __device__ void run() {
    if (first_ < end_) {
      const OperandPair& own = kOwnsKeys ? pass_.key_operands : pass_.row_operands;
      if constexpr (Sizes::kOwnInRegisters) {
        own_rows().load(own.first, own_rows_[0]);
        own_rows().load(own.second, own_rows_[1]);
      } else {
        own_rows().copy(own.first, kWidth, own_tile(0));
        own_rows().copy(own.second, kWidth, own_tile(1));
        publish_to_tensor_cores();
        sync_threads(1 + warpgroup_, kWarpgroup);
      }
      if (!kOwnsKeys) load_row_terms();
      for (int tile = task_.first_tile; tile < first_; ++tile) pass_by();
      meet();
      for (int tile = end_; tile < task_.end_tile; ++tile) pass_by();
    } else {
      for (int tile = task_.first_tile; tile < task_.end_tile; ++tile) pass_by();
    }
    store();
  }

 private:
  static constexpr int kTileBytes = Sizes::kTile * 2;

  __device__ OwnRows own_rows() const { return {task_.batch, task_.head, own_, task_.own_end}; }
  __device__ bfloat16* own_tile(int tensor) const {
    return ring_.own + (warpgroup_ * 2 + tensor) * Sizes::kTile;
  }

  __device__ void load_row_terms() {
    for (int half = 0; half < 2; ++half) {
      const int64_t row = own_ + OwnRows::row(half);
      const int64_t at = task_.sequence * pass_.rows + row;
      const bool real = row < task_.own_end;
      row_maximum_[half] = real ? pass_.maximum[at] : HUGE_VALF;
      row_offset_[half] = real ? pass_.offset[at] : 0.0f;
    }
  }

  __device__ void meet() {
    if constexpr (kOverlaps) {
      meet_overlapping();
    } else {
      // While one consumer has no products to wait for, the other has.
      for (int tile = first_; tile < end_; ++tile) {
        enter(tile);
        pack();
        start_sums();
        finish_sums();
        release(sums_stage_);
      }
    }
  }

  __device__ void meet_overlapping() {
    enter(first_);
    for (int tile = first_ + 1; tile < end_; ++tile) {
      // The end of the loop keeps the compiler from waiting for the sums before differentiate().
      finish_sums();
      if (tile > first_ + 1) release(sums_stage_);
      pack();
      const int stage = scores_stage_;
      start_scores();
      sums_stage_ = stage;
      start_sums();
      load_met_terms(0);
      wait_products<2>();
      hold(scores_);
      weigh(tile);
      wait_products<1>();
      hold(changes_);
      differentiate();
    }
    finish_sums();
    if (first_ + 1 < end_) release(sums_stage_);
    pack();
    sums_stage_ = scores_stage_;
    start_sums();
    finish_sums();
    release(sums_stage_);
  }

  /// Weights of a tile, with nothing else in flight.
  __device__ void enter(int tile) {
    start_scores();
    load_met_terms(0);
    wait_products<1>();
    hold(scores_);
    weigh(tile);
    wait_products<0>();
    hold(changes_);
    differentiate();
    sums_stage_ = scores_stage_;
  }

  /// The stage at the cursor, filled.
  __device__ int take_stage() {
    const int stage = cursor_.slot;
    wait_for(ring_.full + stage, cursor_.parity);
    cursor_.advance();
    return stage;
  }
  __device__ void release(int stage) {
    __syncwarp();  // all lanes have read their terms
    if (lane_index() == 0) arrive(ring_.empty + stage);
  }
  /// A tile that only the other consumer sees. Weights of 0 would do as well, but for NaN and Inf,
  /// which are not to reach rows by who shares their block.
  __device__ void pass_by() {
    const int stage = take_stage();
    __syncwarp();  // all lanes have seen it come before it may change again
    release(stage);
  }

  __device__ uint32_t stage_place(int stage) const {
    return tiles_place_ + static_cast<uint32_t>(stage) * (2 * kTileBytes >> 4);
  }

  /// scores = own.first met.first^T, changes = own.second met.second^T of the next tile, in flight.
  __device__ void start_scores() {
    scores_stage_ = take_stage();
    begin_products();
    multiply_own<0>(scores_);
    commit_products();
    multiply_own<1>(changes_);
    commit_products();
  }
  template <int kTensor>
  __device__ void multiply_own(float (&scores)[kRows / 2]) {
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      const int at = kTensor * kTileBytes + step / 4 * (Sizes::kPanel * 2) + step % 4 * 32;
      const uint64_t met = describe_tile(stage_place(scores_stage_), at);
      if constexpr (Sizes::kOwnInRegisters) {
        multiply(scores, own_rows_[kTensor] + 4 * step, met, step > 0);
      } else {
        multiply(scores, describe_tile(own_place_, at), met, step > 0);
      }
    }
  }

  /// first sums += dz met.first, second sums += p met.second, in flight.
  __device__ void start_sums() {
    begin_products();
    if constexpr (kOwnsKeys) multiply_met<1>(second_sums_, weights_);
    multiply_met<0>(first_sums_, packed_changes_);
    commit_products();
  }
  template <int kTensor>
  __device__ void multiply_met(float (&sums)[kSums], const uint32_t (&weights)[kRows / 4]) {
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) {
      const uint64_t met = describe_tile(stage_place(sums_stage_),
                                         kTensor * kTileBytes + step * 2048, Sizes::kPanel * 2);
      multiply_transposed(sums, weights + 4 * step, met, true);
    }
  }

  __device__ void finish_sums() {
    wait_products<0>();
    hold(packed_changes_);
    hold(first_sums_);
    if constexpr (kOwnsKeys) {
      hold(weights_);
      hold(second_sums_);
    }
  }

  /// p and dz as operands of the next products.
  __device__ void pack() {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if constexpr (kOwnsKeys) weights_[i] = pack_bfloat16(scores_[2 * i], scores_[2 * i + 1]);
      packed_changes_[i] = pack_bfloat16(changes_[2 * i], changes_[2 * i + 1]);
    }
  }

  /// Maxima (0) or offsets (1) of this thread's two met rows of each eight.
  __device__ void load_met_terms(int which) {
    if constexpr (!kOwnsKeys) return;
    const float* terms = ring_.terms_of(scores_stage_) + which * kRows + OwnRows::column(0);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      met_terms_[n] = *reinterpret_cast<const TwoFloats*>(terms + 8 * n);
    }
  }

  /// scores -> p
  __device__ void weigh(int tile) {
    const float scale = pass_.scale * kLog2E;
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float maximum = kOwnsKeys ? met_terms_[n].value[i % 2] : row_maximum_[i / 2];
        scores_[4 * n + i] = weight_of(fmaf(scores_[4 * n + i], scale, -maximum));
      }
    }
    load_met_terms(1);
    // The compiler waits for products as early in a stretch of code without branches as it may: it
    // is this one that lets the changes come while weights are computed.
    if (!is_whole(tile)) mask(tile);
  }

  /// changes -> dz
  __device__ void differentiate() {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float offset = kOwnsKeys ? met_terms_[n].value[i % 2] : row_offset_[i / 2];
        changes_[4 * n + i] = scores_[4 * n + i] * (changes_[4 * n + i] - offset);
      }
    }
  }

  /// Whether all pairs of the own rows and a tile take part. Met queries past the end have weights
  /// of 0 by their terms.
  __device__ bool is_whole(int tile) const {
    const int64_t first = int64_t{tile} * kRows;
    if (kOwnsKeys) return !pass_.causal || own_ + kRows - 1 <= first + task_.causal_offset;
    return first + kRows <= task_.met_end &&
           (!pass_.causal || first + kRows - 1 <= own_ + task_.causal_offset);
  }

  /// Weights of the other pairs become 0.
  __device__ void mask(int tile) {
    // Relative to this thread's first column; row 0 of the 64 takes part from or up to `diagonal`.
    const int64_t first = int64_t{tile} * kRows;
    const int diagonal =
        clamp(own_ - (kOwnsKeys ? 1 : -1) * task_.causal_offset - first) - OwnRows::column(0);
    const int past = kOwnsKeys ? kRows : clamp(task_.met_end - first) - OwnRows::column(0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int begin = diagonal + OwnRows::row(half);
      const int end = !kOwnsKeys && pass_.causal && begin + 1 < past ? begin + 1 : past;
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + i;
          const bool hidden = kOwnsKeys ? column < begin : column >= end;
          if (hidden) scores_[4 * n + 2 * half + i] = 0.0f;
        }
      }
    }
  }
  /// What decides about columns of a tile and rows of a warpgroup, in 32 bits.
  __device__ static int clamp(int64_t place) {
    constexpr int64_t kFar = 2 * kRows;
    return static_cast<int>(place < -kFar ? -kFar : place > kFar ? kFar : place);
  }

  __device__ void store() {
    const OwnRows own = own_rows();
    bool bad = false;
    if constexpr (kOwnsKeys) {
      bad = own.store(pass_.key, pass_.keys, pass_.head_dim, pass_.scale, first_sums_);
      bad |= own.store(pass_.value, pass_.keys, pass_.value_dim, 1.0f, second_sums_);
    } else {
      bad = own.store(pass_.query, pass_.rows, pass_.head_dim, pass_.scale, first_sums_);
    }
    if (bad) mark_non_finite(params_.flags);
  }

  const GradientPassParams& params_;
  const GradientPass& pass_;
  const GradientRingTask& task_;
  const GradientRing<kWidth>& ring_;
  const int warpgroup_;
  const uint32_t tiles_place_;
  const uint32_t own_place_;
  const int64_t own_;  // the first row
  int first_;          // tiles that its rows see
  int end_;
  RingCursor<Sizes::kStages> cursor_;
  int scores_stage_ = 0;  // of the scores in flight
  int sums_stage_ = 0;    // of the sums in flight
  uint32_t own_rows_[2][16];
  TwoFloats met_terms_[kRows / 8];
  float row_maximum_[2];
  float row_offset_[2];
  float scores_[kRows / 2];
  float changes_[kRows / 2];
  uint32_t weights_[kRows / 4];
  uint32_t packed_changes_[kRows / 4];
  float first_sums_[kSums];
  float second_sums_[kSums];
};

/// Keys meet all queries, or queries meet the keys they see.
template <int kWidth, bool kOwnsKeys>
__device__ void gradients_of_block(const GradientPassParams& params, int64_t block) {
  using Sizes = GradientRingSizes<kWidth>;
  const int consumers = static_cast<int>(blockDim.x) / kWarpgroup - 1;
  const int64_t tiles = kOwnsKeys ? params.key_tiles : params.row_tiles;
  const GradientPlace place = gradient_place(params.pass, block, 1, 1, tiles);
  GradientRingTask task;
  task.batch = place.sequence / params.pass.heads;
  task.head = place.sequence % params.pass.heads;
  task.sequence = place.sequence;
  const int64_t block_rows = int64_t{consumers} * Sizes::kRows;
  task.begin = (kOwnsKeys ? place.tile : tiles - 1 - place.tile) * block_rows;
  task.own_end = kOwnsKeys ? place.keys : place.rows;
  task.met_end = kOwnsKeys ? place.rows : place.keys;
  task.causal_offset = place.keys - place.rows;
  const TileRange range =
      visible_tiles<kOwnsKeys>(params.pass, place, task.begin, task.begin + block_rows);
  task.first_tile = shuffle(range.first, 0);
  task.end_tile = shuffle(range.end, 0);
  const GradientRing<kWidth> ring(consumers);
  if (static_cast<int>(threadIdx.x) / kWarpgroup == consumers) {
    shrink_registers<Sizes::kProducerRegisters>();
    GradientProducer<kWidth, kOwnsKeys>(params.pass, task, ring).run();
  } else {
    grow_registers<Sizes::kConsumerRegisters>();
    GradientConsumer<kWidth, kOwnsKeys>(params, task, ring, place).run();
  }
}

#endif  // sm_90a

template <int kWidth>
__global__ void __launch_bounds__(GradientRingSizes<kWidth>::kMostThreads, 1)
    gradients_on_hopper(const GradientPassParams params) {
  // query, gradient (B,H,L,D|E), key, value (B,H,S,D|E) -> dq (B,H,L,D), dk, dv (B,H,S,D|E)
#if CA_HAS_WARPGROUP_PRODUCTS
  const int64_t block = blockIdx.x;
  if (block < params.key_blocks) {
    gradients_of_block<kWidth, true>(params, block);
  } else {
    gradients_of_block<kWidth, false>(params, block - params.key_blocks);
  }
#endif
}

}  // namespace cluster_attention::cuda
