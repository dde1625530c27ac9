#pragma once

// §1 exact attention on Hopper: what attention.cuh computes, by warpgroup products (wgmma).
//
// Method: FlashAttention-3 (Shah et al., 2024). A block has up to three warpgroups of consumers, 64
// queries each, and one of producers, which fills a ring of key and value tiles ahead of them. A
// consumer starts the scores of a tile, then the output of the tile before; while the latter runs
// it takes the softmax of the former. Weights stay in registers; the online softmax is in base 2.
// Precision: as in attention_tile.cuh; with kSplit the products of a tile are summed by themselves
// and then added to the output in float32, since tensor cores cut what they add to long sums.
// Limits: D, E <= kWidth; a GPU with sm_90a.

#include <cfloat>

#include "cuda/attention_hopper_ring.cuh"
#include "cuda/primitives/exp2.cuh"

namespace cluster_attention::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CA_CUDA_MODEL)

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
        query_(ring.queries + warpgroup() * Sizes::kParts * Sizes::kQueryTile),
        // Never 0, so that masked scores stay -Inf.
        scale_(fmaxf(fabsf(task.scale_log2), FLT_MIN)) {
    for (int i = 0; i < kWidth / 2; ++i) output_[i] = 0.0f;
    for (int half = 0; half < 2; ++half) {
      maximum_[half] = -HUGE_VALF;
      sum_[half] = 0.0f;
      factor_[half] = 1.0f;
    }
  }

  __device__ void run() {
    bool bad = load_queries();
    publish_to_tensor_cores();
    meet_warpgroup();
    const int64_t blocks = visible_blocks();
    if (blocks > 0) attend(blocks);
    bad = store() || bad;
    if (bad) mark_non_finite(params_.flags);
  }

 private:
  __device__ static int warpgroup() { return static_cast<int>(threadIdx.x) / kWarpgroup; }
  __device__ void meet_warpgroup() { sync_threads(1 + warpgroup(), kWarpgroup); }
  /// This thread's row `half`, relative to the first query of the block.
  __device__ static int row_of(int half) {
    return warp_index() * kTileRows + half * 8 + lane_index() / 4;
  }

  /// Blocks of keys that some row of the warpgroup sees. Weights of 0 would do as well for the
  /// others, but for NaN and Inf, which are not to reach rows by who shares their block.
  __device__ int64_t visible_blocks() const {
    // The producer fills those that only other consumers see, and waits for no stage that this one
    // has not given back.
    static_assert((Sizes::kMostConsumers - 1) * kConsumerRows <= (Sizes::kStages - 1) * kKeys,
                  "they fit in the ring behind the last block of each");
    int64_t end = task_.end_key;
    if (task_.causal) {
      const int64_t rows = int64_t{warpgroup() + 1} * kConsumerRows;
      const int64_t seen = task_.first_query + rows + task_.causal_offset;
      if (seen < end) end = seen > 0 ? seen : 0;
    }
    return divide_up(end, kKeys);
  }

  /// True where a NaN or Inf was met.
  __device__ bool load_queries() {
    bool bad = false;
    constexpr int kChunks = kWidth / 8;
    for (int i = static_cast<int>(threadIdx.x) % kWarpgroup; i < kConsumerRows * kChunks;
         i += kWarpgroup) {
      const int row = i / kChunks;
      const int column = i % kChunks * 8;
      const int64_t query = task_.first_query + warpgroup() * kConsumerRows + row;
      float values[8] = {};
      if (query < task_.queries) {
        const int64_t at = params_.query.offset(task_.batch, task_.head, query) + column;
        load_eight(params_.query, at, params_.head_dim - column, values);
      }
      uint32_t high[4];
      uint32_t low[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        split_pair(values[2 * j], values[2 * j + 1], high[j], low[j]);
        bad = bad || pair_is_bad(high[j]);
      }
      bfloat16* to = query_ + column / kSwizzledColumns * kConsumerRows * kSwizzledColumns +
                     swizzled(row, column % kSwizzledColumns / 8);
      *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
      if constexpr (kSplit) {
        *reinterpret_cast<uint4*>(to + Sizes::kQueryTile) =
            make_uint4(low[0], low[1], low[2], low[3]);
      }
    }
    return bad;
  }

  __device__ void attend(int64_t blocks) {
    wait_for(ring_.full, 0);
    start_scores(0);
    wait_products<0>();
    hold(scores_);
    enter_softmax(0);
    pack_weights();
    for (int64_t block = 1; block < blocks; ++block) {
      wait_for(ring_.full + block % Sizes::kStages, ring_.parity(block));
      start_scores(block);
      start_output(block - 1);
      wait_products<1>();
      hold(scores_);
      // What start_output() gives is relative to the maxima before this block.
      const float before[2] = {factor_[0], factor_[1]};
      enter_softmax(block);
      finish_output(before);
      release(block - 1);
      if constexpr (!kSplit) rescale();
      pack_weights();
    }
    start_output(blocks - 1);
    finish_output(factor_);
  }

  /// scores = Q K^T, in flight.
  __device__ void start_scores(int64_t block) {
    begin_products();
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) {
      const int panel = step / 4;
      const int bytes = step % 4 * 32;
      const uint64_t query =
          describe_tile(query_ + panel * kConsumerRows * kSwizzledColumns, bytes);
      const uint64_t key =
          describe_tile(ring_.keys(block, 0) + panel * kKeys * kSwizzledColumns, bytes);
      if constexpr (kSplit) {
        const uint64_t query_low = describe_tile(
            query_ + Sizes::kQueryTile + panel * kConsumerRows * kSwizzledColumns, bytes);
        const uint64_t key_low =
            describe_tile(ring_.keys(block, 1) + panel * kKeys * kSwizzledColumns, bytes);
        multiply(scores_, query_low, key, step > 0);
        multiply(scores_, query, key_low, true);
        multiply(scores_, query, key, true);
      } else {
        multiply(scores_, query, key, step > 0);
      }
    }
    commit_products();
  }

  /// output += weights V, in flight; with kSplit into a sum of its own.
  __device__ void start_output(int64_t block) {
    constexpr int kPanelBytes = kKeys * kSwizzledColumns * 2;
    begin_products();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      const uint64_t value = describe_tile(ring_.values(block, 0), step * 2048, kPanelBytes);
      if constexpr (kSplit) {
        const uint64_t value_low = describe_tile(ring_.values(block, 1), step * 2048, kPanelBytes);
        multiply_transposed(fresh_, weights_[1] + 4 * step, value, step > 0);
        multiply_transposed(fresh_, weights_[0] + 4 * step, value_low, true);
        multiply_transposed(fresh_, weights_[0] + 4 * step, value, true);
      } else {
        multiply_transposed(output_, weights_[0] + 4 * step, value, true);
      }
    }
    commit_products();
  }

  __device__ void finish_output(const float (&factor)[2]) {
    wait_products<0>();
    for (int part = 0; part < Sizes::kParts; ++part) hold(weights_[part]);
    if constexpr (kSplit) {
      hold(fresh_);
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) {
        output_[i] = fmaf(output_[i], factor[i / 2 % 2], fresh_[i]);
      }
    } else {
      hold(output_);
    }
  }

  __device__ void release(int64_t block) {
    if (lane_index() == 0) arrive(ring_.empty + block % Sizes::kStages);
  }

  /// -Inf for keys that a row does not see.
  __device__ void mask(int64_t block) {
    const int64_t first_key = block * kKeys;
    const int64_t first_row = task_.first_query + warpgroup() * kConsumerRows;
    const int64_t seen = task_.causal ? first_row + task_.causal_offset + 1 : task_.end_key;
    if (first_key + kKeys <= (seen < task_.end_key ? seen : task_.end_key)) return;
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

  /// scores -> weights relative to the new maximum; factor_ leads from the maximum before to it.
  __device__ void enter_softmax(int64_t block) {
    if (task_.scale_log2 < 0.0f) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) scores_[i] = -scores_[i];
    }
    mask(block);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -HUGE_VALF;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores_[4 * n + 2 * half], scores_[4 * n + 2 * half + 1]));
      }
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      largest = fmaxf(maximum_[half], largest == -HUGE_VALF ? largest : largest * scale_);
      factor_[half] = maximum_[half] == -HUGE_VALF ? 0.0f : exp2_fast(maximum_[half] - largest);
      maximum_[half] = largest;
      const float base = largest == -HUGE_VALF ? 0.0f : largest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores_[4 * n + 2 * half + i];
          score = exp2_fast(fmaf(score, scale_, -base));
          sum += score;
        }
      }
      sum_[half] = sum_[half] * factor_[half] + sum;
    }
  }

  __device__ void rescale() {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) output_[i] *= factor_[i / 2 % 2];
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
    bool bad = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = task_.first_query + row_of(half);
      SoftmaxState state = {maximum_[half], warp_sum(sum_[half], 4)};
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
  bfloat16* const query_;
  const float scale_;  // |tau| log2(e)
  float scores_[kKeys / 2];
  uint32_t weights_[Sizes::kParts][kKeys / 4];
  float output_[kWidth / 2];
  float fresh_[kSplit ? kWidth / 2 : 1];
  float maximum_[2];  // scaled
  float sum_[2];
  float factor_[2];
};

#endif  // sm_90a

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(HopperSizes<kWidth, kSplit>::kMostThreads, 1)
    attend_on_hopper(const AttentionParams params) {
  // query (B,H,L,D), key (B,H,S,D), value (B,H,S,E) -> output (B,H,L,E), logsumexp (B,H,L)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CA_CUDA_MODEL)
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
