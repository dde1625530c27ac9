#pragma once

// §1 exact attention on Hopper: what attention.cuh computes, by warpgroup products (wgmma).
//
// Method: FlashAttention-3 (Shah et al., 2024). A block has up to three warpgroups of consumers, 64
// queries each, and one of producers, which fills a ring of key and value tiles ahead of them. A
// consumer starts the scores of a tile, then the output of the tile before; while the latter runs
// it takes the softmax of the former. Weights stay in registers; the online softmax is in base 2,
// relative to a base that follows the largest score of a row only where that leaves it by more than
// kSlack (as in FlashAttention-4): hardly ever after the first tiles.
// Precision: as in attention_tile.cuh; with kSplit the products of a tile are summed by themselves
// and then added to the output in float32, since tensor cores cut what they add to long sums.
// Limits: D, E <= kWidth; a GPU with sm_90a.

#include <cfloat>

#include "cuda/attention_hopper_queries.cuh"
#include "cuda/primitives/exp2.cuh"
#include "cuda/primitives/largest.cuh"

namespace cluster_attention::cuda {

#if CA_HAS_WARPGROUP_PRODUCTS

/// A warpgroup with 64 queries of its own.
template <int kWidth, bool kSplit>
class HopperConsumer {
 public:
  using Sizes = HopperSizes<kWidth, kSplit>;
  static constexpr int kKeys = Sizes::kKeys;

  __device__ HopperConsumer(const AttentionParams& params, const TileTask& task,
                            const HopperRing<kWidth, kSplit>& ring)
      : params_(params),
        task_(task),
        ring_(ring),
        // The same for a warp, and known to be, so that it is kept in uniform registers.
        warpgroup_(shuffle(static_cast<int>(threadIdx.x) / kWarpgroup, 0)),
        query_place_(shuffle(locate_tile(queries()), 0)),
        slots_place_(shuffle(locate_tile(ring.slots), 0)) {
    for (int i = 0; i < kWidth / 2; ++i) output_[i] = 0.0f;
    for (int i = 0; i < (kSplit ? kWidth / 2 : 1); ++i) fresh_[i] = 0.0f;
    for (int half = 0; half < 2; ++half) {
      base_[half] = -HUGE_VALF;
      sum_[half] = 0.0f;
      factor_[half] = 1.0f;
      before_[half] = 1.0f;
    }
  }

  __device__ void run() {
    bool bad = load_hopper_queries<kWidth, kSplit>(params_, task_, warpgroup_, queries());
    publish_to_tensor_cores();
    meet_warpgroup();
    const int blocks = shuffle(visible_blocks(), 0);
    whole_blocks_ = shuffle(unmasked_blocks(), 0);
    if (blocks > 0) attend(blocks);
    bad = store() || bad;
    if (bad) mark_non_finite(params_.flags);
  }

 private:
  // A row's base stays while no score is larger by more: weights are up to 2^8 then.
  static constexpr float kSlack = 8.0f;

  __device__ bfloat16* queries() const {
    return ring_.queries + warpgroup_ * Sizes::kParts * Sizes::kQueryTile;
  }
  __device__ void meet_warpgroup() { sync_threads(1 + warpgroup_, kWarpgroup); }
  /// This thread's row `half`, relative to the first query of the block.
  __device__ static int row_of(int half) {
    return warp_index() * kTileRows + half * 8 + lane_index() / 4;
  }

  /// Blocks of keys that some row of the warpgroup sees. Weights of 0 would do as well for the
  /// others, but for NaN and Inf, which are not to reach rows by who shares their block.
  __device__ int visible_blocks() const {
    int64_t end = task_.end_key;
    if (task_.causal) {
      const int64_t rows = int64_t{warpgroup_ + 1} * kConsumerRows;
      const int64_t seen = task_.first_query + rows + task_.causal_offset;
      if (seen < end) end = seen > 0 ? seen : 0;
    }
    return static_cast<int>(divide_up(end, kKeys));
  }
  /// The first ones, of which every row of the warpgroup sees all keys.
  __device__ int unmasked_blocks() const {
    int64_t end = task_.end_key;
    if (task_.causal) {
      const int64_t first_row = task_.first_query + int64_t{warpgroup_} * kConsumerRows;
      const int64_t seen = first_row + task_.causal_offset + 1;
      if (seen < end) end = seen > 0 ? seen : 0;
    }
    return static_cast<int>(end / kKeys);
  }

  __device__ void attend(int blocks) {
    start_scores();
    wait_products<0>();
    hold(scores_);
    release(key_slot_);
    enter_softmax(0);
    for (int block = 1; block < blocks; ++block) {
      // The compiler waits for products as early in a stretch of code without branches as it may:
      // it is the end of the loop that lets the output before run on behind the exponentials.
      finish_output();
      if (block > 1) release(value_slot_);
      pack_weights();
      start_scores();
      start_output();
      wait_products<1>();
      hold(scores_);
      release(key_slot_);
      enter_softmax(block);
    }
    finish_output();
    pack_weights();
    // Keys that only other consumers see. The producer fills their slots, and fits what follows
    // into those that this one has given back.
    constexpr int kMore = ((Sizes::kMostConsumers - 1) * kConsumerRows + kKeys - 1) / kKeys;
    static_assert(2 * kMore + 1 <= Sizes::kSlots, "or the producer waits for ever");
    if (blocks < divide_up(task_.end_key, kKeys)) cursor_.advance();
    start_output();
    finish_output();
  }

  /// The slot at the cursor, filled.
  __device__ int take_slot() {
    const int slot = cursor_.slot;
    wait_for(ring_.full + slot, cursor_.parity);
    cursor_.advance();
    return slot;
  }
  __device__ void release(int slot) {
    if (lane_index() == 0) arrive(ring_.empty + slot);
  }
  __device__ uint32_t slot_place(int slot) const {
    return slots_place_ + static_cast<uint32_t>(slot) * (Sizes::kSlot * 2 / 16);
  }

  /// scores = Q K^T of the next block, in flight.
  __device__ void start_scores() {
    key_slot_ = take_slot();
    const uint32_t keys = slot_place(key_slot_);
    begin_products();
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      const int at_query = (step / 4 * kConsumerRows * kSwizzledColumns) * 2 + step % 4 * 32;
      const int at_key = (step / 4 * kKeys * kSwizzledColumns) * 2 + step % 4 * 32;
      const uint64_t query = describe_tile(query_place_, at_query);
      const uint64_t key = describe_tile(keys, at_key);
      if constexpr (kSplit) {
        const uint64_t query_low = describe_tile(query_place_, Sizes::kQueryTile * 2 + at_query);
        const uint64_t key_low = describe_tile(keys, Sizes::kTile * 2 + at_key);
        multiply(scores_, query_low, key, step > 0);
        multiply(scores_, query, key_low, true);
        multiply(scores_, query, key, true);
      } else {
        multiply(scores_, query, key, step > 0);
      }
    }
    commit_products();
  }

  /// output += weights V of the next block, in flight; with kSplit into a sum of its own.
  __device__ void start_output() {
    constexpr int kPanelBytes = kKeys * kSwizzledColumns * 2;
    value_slot_ = take_slot();
    const uint32_t values = slot_place(value_slot_);
    begin_products();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      const uint64_t value = describe_tile(values, step * 2048, kPanelBytes);
      if constexpr (kSplit) {
        const uint64_t value_low =
            describe_tile(values, Sizes::kTile * 2 + step * 2048, kPanelBytes);
        multiply_transposed(fresh_, weights_[1] + 4 * step, value, step > 0);
        multiply_transposed(fresh_, weights_[0] + 4 * step, value_low, true);
        multiply_transposed(fresh_, weights_[0] + 4 * step, value, true);
      } else {
        multiply_transposed(output_, weights_[0] + 4 * step, value, true);
      }
    }
    commit_products();
  }

  /// What start_output() has begun, then relative to the bases now.
  __device__ void finish_output() {
    wait_products<0>();
    for (int part = 0; part < Sizes::kParts; ++part) hold(weights_[part]);
    if constexpr (kSplit) {
      hold(fresh_);
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) {
        output_[i] = fmaf(output_[i], before_[i / 2 % 2], fresh_[i]);
      }
      for (int half = 0; half < 2; ++half) before_[half] = factor_[half];
    } else {
      hold(output_);
      if (raised_) {
#pragma unroll
        for (int i = 0; i < kWidth / 2; ++i) output_[i] *= factor_[i / 2 % 2];
        raised_ = false;
      }
    }
  }

  __device__ static uint32_t bits_of(float value) {
    return static_cast<uint32_t>(__float_as_int(value));
  }

  /// -Inf for keys that a row does not see.
  __device__ void mask(int block) {
    const int64_t first_key = int64_t{block} * kKeys;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int64_t end = task_.end_key;
      if (task_.causal) {
        const int64_t row_end = task_.first_query + row_of(half) + task_.causal_offset + 1;
        end = row_end < end ? row_end : end;
      }
      const int columns = end - first_key < kKeys ? static_cast<int>(end - first_key) : kKeys;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (n * 8 + lane_index() % 4 * 2 + i >= columns) {
            scores_[4 * n + 2 * half + i] = -HUGE_VALF;
          }
        }
      }
    }
  }

  /// scores -> weights relative to base_, which may rise; factor_ leads from the bases before then.
  __device__ void enter_softmax(int block) {
    // Never 0, so that a product of -Inf stays what it is.
    const float scale = copysignf(fmaxf(fabsf(task_.scale_log2), FLT_MIN), task_.scale_log2);
    uint32_t lowest = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float base = base_[half] == -HUGE_VALF ? 0.0f : base_[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        float& left = scores_[4 * n + 2 * half];
        float& right = scores_[4 * n + 2 * half + 1];
        left = fmaf(left, scale, -base);
        right = fmaf(right, scale, -base);
        lowest = largest_of(lowest, bits_of(left), bits_of(right));
      }
    }
    // A logit of -Inf shows in no result. Hidden ones count too: to tell them apart takes
    // registers.
    lowest_ = lowest_ > lowest ? lowest_ : lowest;
    if (block >= whole_blocks_) mask(block);
    raised_ = any(some_base_is_low());
    if (raised_) {
      raise_bases();
    } else if (kSplit) {
      factor_[0] = factor_[1] = 1.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores_[4 * n + i] = exp2_fast(scores_[4 * n + i]);
          sum += scores_[4 * n + i];
        }
      }
      sum_[half] += sum;
    }
  }

  /// Whether a score of this thread's lies too far above the base of its row, or that row has none.
  __device__ bool some_base_is_low() const {
    if (base_[0] == -HUGE_VALF || base_[1] == -HUGE_VALF) return true;
    int largest[4] = {};
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 2) {
      int& part = largest[i / 2 % 4];
      part = largest_of(part, __float_as_int(scores_[i]), __float_as_int(scores_[i + 1]));
    }
    const int joint = largest_of(largest[0], largest[1], largest[2]);
    return largest_of(joint, largest[3], 0) > __float_as_int(kSlack);
  }

  /// By the scores of each row alone, whoever else in the warp needs it.
  __device__ void raise_bases() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -HUGE_VALF;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores_[4 * n + 2 * half], scores_[4 * n + 2 * half + 1]));
      }
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      float rise = 0.0f;
      if (base_[half] == -HUGE_VALF) {
        base_[half] = largest;
        if (largest != -HUGE_VALF) rise = largest;
        factor_[half] = 1.0f;  // of nothing
      } else {
        const float base = largest > kSlack ? base_[half] + largest : base_[half];
        rise = base - base_[half];
        base_[half] = base;
        factor_[half] = exp2_fast(-rise);
      }
      sum_[half] *= factor_[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) scores_[4 * n + i] -= rise;
      }
    }
  }

  /// Weights as operands of the next product.
  __device__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      if constexpr (kSplit) {
        split_weights(scores_[2 * i], scores_[2 * i + 1], weights_[0][i], weights_[1][i]);
      } else {
        weights_[0][i] = pack_bfloat16(scores_[2 * i], scores_[2 * i + 1]);
      }
    }
  }

  /// True where a result is not finite.
  __device__ bool store() {
    bool bad = lowest_ >= bits_of(-HUGE_VALF);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = task_.first_query + row_of(half);
      SoftmaxState state = {base_[half], warp_sum(sum_[half], 4)};
      if (query >= params_.query_length) continue;
      if (query >= task_.queries) state = SoftmaxState();
      bad |= write_query<kWidth / 8>(params_, task_, query, state,
                                     [&](int n, int i) { return output_[4 * n + 2 * half + i]; });
    }
    return bad;
  }

  const AttentionParams& params_;
  const TileTask& task_;
  const HopperRing<kWidth, kSplit>& ring_;
  const int warpgroup_;
  const uint32_t query_place_;
  const uint32_t slots_place_;
  int whole_blocks_ = 0;  // from here on, keys are masked
  RingCursor<Sizes::kSlots> cursor_;
  int key_slot_ = 0;    // of the scores in flight
  int value_slot_ = 0;  // of the output in flight
  float scores_[kKeys / 2];
  uint32_t weights_[Sizes::kParts][kKeys / 4];
  float output_[kWidth / 2];
  float fresh_[kSplit ? kWidth / 2 : 1];
  float base_[2];  // of scores in base 2
  float sum_[2];
  float factor_[2];
  float before_[2];      // with kSplit: the factors of the block before
  uint32_t lowest_ = 0;  // of the logits that are below 0: the bits of the lowest one
  bool raised_ = true;   // factor_ is not 1
};

#endif  // sm_90a

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(HopperSizes<kWidth, kSplit>::kMostThreads, 1)
    attend_on_hopper(const AttentionParams params) {
  // query (B,H,L,D), key (B,H,S,D), value (B,H,S,E) -> output (B,H,L,E), logsumexp (B,H,L)
#if CA_HAS_WARPGROUP_PRODUCTS
  using Sizes = HopperSizes<kWidth, kSplit>;
  const int consumers = static_cast<int>(blockDim.x) / kWarpgroup - 1;
  const TileTask task = attention_task(params, consumers * kConsumerRows);
  const HopperRing<kWidth, kSplit> ring(consumers);
  if (static_cast<int>(threadIdx.x) / kWarpgroup == consumers) {
    shrink_registers<Sizes::kProducerRegisters>();
    HopperProducer<kWidth, kSplit>(params, task, ring).run();
  } else {
    grow_registers<Sizes::kConsumerRegisters>();
    HopperConsumer<kWidth, kSplit>(params, task, ring).run();
  }
#endif
}

}  // namespace cluster_attention::cuda
