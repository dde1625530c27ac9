#pragma once

// One block's share of softmax(tau Q K^T) V with tensor cores: up to 16 x kRowTiles queries in each
// warp against one stretch of keys. Exact attention and the pass of mean queries are made of it.
//
// Method: FlashAttention-2 (Dao, 2023). Keys and values stream through shared memory in blocks of
// kKeys, two of them where they fit: one is copied while the other is used. Scores stay in
// registers: the accumulators of Q K^T are the operands of P V. The softmax is online (native/core/
// softmax_state.h), in base 2.
// Precision: bfloat16 operands, float32 sums; with kSplit, operands in two parts, three products,
// in chains of a block of keys (primitives/mma_chains.cuh): about 1e-5 relative to the norm.
// Limits: kWidth >= D, E; a multiple of 32.

#include "cuda/attention_task.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/mma_chains.cuh"

namespace cluster_attention::cuda {

/// d += A B in parts: without the product of both low ones, small ones first.
template <int kPartsA, int kPartsB>
__device__ inline void multiply_parts(FragmentD& d, const FragmentA& high_a, const FragmentA& low_a,
                                      const FragmentB& high_b, const FragmentB& low_b) {
  if constexpr (kPartsA == 2) mma_bf16_16x8x16(d, low_a, high_b);
  if constexpr (kPartsB == 2) mma_bf16_16x8x16(d, high_a, low_b);
  mma_bf16_16x8x16(d, high_a, high_b);
}

/// With kSplitQuery, queries are in two parts though keys and values are not. With kFed, the last
/// warp of the block has no queries but copies keys and values for the others.
template <int kWidth, bool kSplit, int kTiles = kManyRowTiles<kWidth, kSplit>,
          bool kSplitQuery = kSplit, bool kFed = false>
class AttentionTile {
 public:
  using Sizes = TileSizes<kWidth, kSplit, kTiles, kSplitQuery>;
  static constexpr int kQueryParts = Sizes::kQueryParts;
  static constexpr int kKeys = Sizes::kKeys;
  static constexpr int kRowTiles = Sizes::kRowTiles;
  static constexpr int kStride = Sizes::kStride;
  static constexpr int kScoreTiles = kKeys / 8;
  static constexpr int kOutputTiles = kWidth / 8;
  using Scores = float[kScoreTiles][4];

  __device__ AttentionTile(const TileTask& task, const KeysAndValues& operands)
      : task_(task), operands_(operands) {
    const int warps = query_warps();
    buffers_ = buffers_of_block<Sizes>(warps);
    const auto layout = Sizes::layout(warps, buffers_);
    rows_ = Sizes::kWarpRows * warps;
    query_ = dynamic_shared<bfloat16>(layout.query);
    keys_ = dynamic_shared<bfloat16>(layout.keys);
    values_ = dynamic_shared<bfloat16>(layout.values);
    minimum_ = HUGE_VALF;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        maximum_[m][half] = -HUGE_VALF;
        sum_[m][half] = 0.0f;
      }
#pragma unroll
      for (int n = 0; n < kOutputTiles; ++n) {
        for (int i = 0; i < 4; ++i) output_[m][n][i] = 0.0f;
      }
    }
    // The first keys are on their way while the queries are read.
    if (task_.first_key >= task_.end_key) return;
    if (kSplit) clear_missing_parts();
    if (feeds()) copy_block(0, 0);
  }

  /// Warps of the block that have queries.
  __device__ static int query_warps() {
    return static_cast<int>(blockDim.x) / kWarp - (kFed ? 1 : 0);
  }
  __device__ static bool has_queries() { return !kFed || warp_index() < query_warps(); }

  /// Query (relative to first_query) of this thread's row `half` of row tile m.
  __device__ int row_of(int m, int half) const {
    return warp_index() * Sizes::kWarpRows + m * kTileRows + half * 8 + lane_index() / 4;
  }
  /// Key, relative to the block of keys, of score i of score tile n.
  __device__ static int key_of(int n, int i) { return n * 8 + lane_index() % 4 * 2 + i % 2; }

  /// Reads the queries into shared memory: load(row, column, values) gives eight columns of a real
  /// one, 0 past its last. True in threads that met a NaN or Inf.
  template <typename Load>
  __device__ bool load_queries(Load load) const {
    constexpr int kChunks = kWidth / 8;
    bool bad = false;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * kChunks;
         i += static_cast<int>(blockDim.x)) {
      const int row = i / kChunks;
      const int column = i % kChunks * 8;
      float values[8] = {};
      const int64_t query = task_.first_query + row;
      if (query >= task_.masked_queries && query < task_.queries) load(row, column, values);
      uint32_t high[4];
      uint32_t low[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        split_pair(values[2 * j], values[2 * j + 1], high[j], low[j]);
        bad = bad || pair_is_bad(high[j]);
      }
      bfloat16* to = query_ + row * kStride + column;
      *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
      if constexpr (kSplitQuery) {
        *reinterpret_cast<uint4*>(to + rows_ * kStride) =
            make_uint4(low[0], low[1], low[2], low[3]);
      }
    }
    return bad;
  }

  /// Goes through the keys of the task. select(m, first_key, scores) sees the products q k of each
  /// block of keys and of each row tile, unscaled, those past the last key among them; all lanes of
  /// a warp call it together.
  template <typename Select>
  __device__ void run(Select select) {
    const int64_t blocks = (task_.end_key - task_.first_key + kKeys - 1) / kKeys;
    for (int64_t block = 0; block < blocks; ++block) {
      wait_copies<0>();
      // Also: every warp is done with the other buffer, which the next copies fill.
      __syncthreads();
      const bool more = block + 1 < blocks;
      const int buffer = buffers_ == 1 ? 0 : static_cast<int>(block % 2);
      if (buffers_ == 2 && more && feeds()) copy_block(1 - buffer, block + 1);
      if (has_queries()) step(buffer, task_.first_key + block * kKeys, select);
      if (buffers_ == 2 || !more) continue;
      __syncthreads();
      if (feeds()) copy_block(0, block + 1);
    }
  }
  __device__ void run() {
    run([](int, int64_t, const Scores&) {});
  }

  /// After the last key: sums over the lanes that share a row.
  __device__ void join_sums() {
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) sum_[m][half] = warp_sum(sum_[m][half], 4);
    }
  }
  __device__ SoftmaxState state(int m, int half) const {
    return {maximum_[m][half], sum_[m][half]};
  }
  /// Summed output of a row in column(n) + i, relative to its state.
  __device__ float output(int m, int half, int n, int i) const {
    return output_[m][n][half * 2 + i];
  }
  __device__ static int column(int n) { return n * 8 + lane_index() % 4 * 2; }
  /// A visible score was -Inf: an Inf was read that no output shows.
  __device__ bool saw_infinity() const { return minimum_ == -HUGE_VALF; }

 private:
  __device__ static bool feeds() { return !kFed || !has_queries(); }

  __device__ bfloat16* buffer_of(bfloat16* tensor, int buffer, int part) const {
    return tensor + (buffer * Sizes::kParts + part) * kKeys * kStride;
  }

  /// The low parts of operands that are whole without them.
  __device__ void clear_missing_parts() {
    for (int i = static_cast<int>(threadIdx.x); i < buffers_ * kKeys * kStride;
         i += static_cast<int>(blockDim.x)) {
      const int buffer = i / (kKeys * kStride);
      const int place = i % (kKeys * kStride);
      if (operands_.key.low == nullptr) buffer_of(keys_, buffer, 1)[place] = {0};
      if (operands_.value.low == nullptr) buffer_of(values_, buffer, 1)[place] = {0};
    }
  }

  __device__ void copy_block(int buffer, int64_t block) {
    const int64_t first = task_.first_key + block * kKeys;
    copy_tensor(operands_.key, operands_.key.high, buffer_of(keys_, buffer, 0), first);
    copy_tensor(operands_.value, operands_.value.high, buffer_of(values_, buffer, 0), first);
    if (kSplit) {
      if (operands_.key.low != nullptr) {
        copy_tensor(operands_.key, operands_.key.low, buffer_of(keys_, buffer, 1), first);
      }
      if (operands_.value.low != nullptr) {
        copy_tensor(operands_.value, operands_.value.low, buffer_of(values_, buffer, 1), first);
      }
    }
    commit_copies();
  }

  /// kKeys rows from row `first` on; zeros for rows past the end and columns that there are not.
  /// A thread copies the same columns of every few rows.
  __device__ void copy_tensor(const Operand& operand, const bfloat16* from, bfloat16* to,
                              int64_t first) {
    constexpr int kChunks = kWidth / 8;
    static_assert(kWarp % kChunks == 0, "threads make whole rows");
    const int thread = kFed ? lane_index() : static_cast<int>(threadIdx.x);
    const int rows = (kFed ? kWarp : static_cast<int>(blockDim.x)) / kChunks;  // at once
    const int column = thread % kChunks * 8;
    const int64_t left = task_.end_key - first;
    const int end = column >= operand.columns ? 0 : left < kKeys ? static_cast<int>(left) : kKeys;
    int row = thread / kChunks;
    const bfloat16* source = from + task_.batch * operand.batch_stride +
                             task_.head * operand.head_stride + (first + row) * operand.row_stride +
                             column;
    const int64_t step = rows * operand.row_stride;
    to += row * kStride + column;
#pragma unroll 4
    for (; row < kKeys; row += rows, source += step, to += rows * kStride) {
      copy_async_16(to, row < end ? source : from, row < end);
    }
  }

  /// Whether no row of the warp sees a key from this one on. Weights of 0 would do as well, but for
  /// NaN and Inf, which are not to reach rows by who shares their block.
  __device__ bool is_hidden(int64_t first_key) const {
    const int64_t last_row = task_.first_query + (warp_index() + int64_t{1}) * Sizes::kWarpRows - 1;
    return task_.causal && first_key > last_row + task_.causal_offset;
  }

  template <typename Select>
  __device__ void step(int buffer, int64_t first_key, Select& select) {
    if (is_hidden(first_key)) return;
    Scores scores[kRowTiles];
    float factor[kRowTiles][2];
    multiply_keys(buffer, scores);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      select(m, first_key, scores[m]);
      mask(m, first_key, scores[m]);
      enter_softmax(scores[m], maximum_[m], sum_[m], factor[m]);
      if constexpr (!kSplit) rescale(output_[m], factor[m]);
    }
    if constexpr (kSplit) {
      multiply_values_in_chains(buffer, scores, factor);
    } else {
      multiply_values(buffer, scores);
    }
  }

  /// scores = Q K^T, in fragments.
  __device__ void multiply_keys(int buffer, Scores (&scores)[kRowTiles]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
      }
    }
    const int lane = lane_index();
    const int query_row = warp_index() * Sizes::kWarpRows + lane % 16;
    const bfloat16* keys = buffer_of(keys_, buffer, 0) + lane % 8 * kStride + lane / 8 * 8;
#pragma unroll
    for (int k = 0; k < kWidth / 32; ++k) {
      uint32_t query[kQueryParts][kRowTiles][2][4];
#pragma unroll
      for (int part = 0; part < kQueryParts; ++part) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const bfloat16* row = query_ + (part * rows_ + query_row + m * kTileRows) * kStride +
                                k * 32 + lane / 16 * 8;
          load_tiles(query[part][m][0], row);
          load_tiles(query[part][m][1], row + 16);
        }
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        uint32_t key[Sizes::kParts][4];
#pragma unroll
        for (int part = 0; part < Sizes::kParts; ++part) {
          load_tiles(key[part], keys + part * kKeys * kStride + n * 8 * kStride + k * 32);
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply(scores[m][n], query, m, 0, key, 0);
          multiply(scores[m][n], query, m, 1, key, 2);
        }
      }
    }
  }

  /// One product of query step `step` with the two registers of `key` from `first` on.
  __device__ static void multiply(FragmentD& d,
                                  const uint32_t (&query)[kQueryParts][kRowTiles][2][4], int m,
                                  int step, const uint32_t (&key)[Sizes::kParts][4], int first) {
    const FragmentB high = {key[0][first], key[0][first + 1]};
    const FragmentB low = {key[kSplit ? 1 : 0][first], key[kSplit ? 1 : 0][first + 1]};
    multiply_parts<kQueryParts, Sizes::kParts>(d, query[0][m][step],
                                               query[kQueryParts - 1][m][step], high, low);
  }

  /// Scales the scores; those of keys that a row does not see become -Inf.
  __device__ void mask(int m, int64_t first_key, Scores& scores) {
    const int64_t first_row = task_.first_query + warp_index() * Sizes::kWarpRows + m * kTileRows;
    // How many keys the first row sees, and whether that leaves the whole block visible.
    int64_t limit = task_.end_key - first_key;
    const int64_t seen = first_row + task_.causal_offset + 1 - first_key;
    if (task_.causal && seen < limit) limit = seen;
    if (limit >= kKeys) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[n][i] *= task_.scale_log2;
          minimum_ = fminf(minimum_, scores[n][i]);
        }
      }
      return;
    }
    const int64_t left = task_.end_key - first_key;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t mine = seen + half * 8 + lane_index() / 4;
      const int visible = static_cast<int>(task_.causal && mine < left ? mine : left);
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          const float score = scores[n][i] * task_.scale_log2;
          const bool sees = key_of(n, i) < visible;
          if (sees) minimum_ = fminf(minimum_, score);
          scores[n][i] = sees ? score : -HUGE_VALF;
        }
      }
    }
  }

  /// This lane's place in a block of values, for load_tiles_transposed().
  __device__ const bfloat16* values_of_lane(int buffer) const {
    const int lane = lane_index();
    return buffer_of(values_, buffer, 0) + lane % 16 * kStride + lane / 16 * 8;
  }

  /// output += weights V.
  __device__ void multiply_values(int buffer, const Scores (&weights)[kRowTiles]) {
    const bfloat16* values = values_of_lane(buffer);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      FragmentA weight[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) pack_tiles(weights[m], k, weight[m]);
#pragma unroll
      for (int n = 0; n < kWidth / 16; ++n) {
        uint32_t value[4];
        load_tiles_transposed(value, values + k * 16 * kStride + n * 16);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const FragmentB pair = {value[side * 2], value[side * 2 + 1]};
            mma_bf16_16x8x16(output_[m][2 * n + side], weight[m], pair);
          }
        }
      }
    }
  }

  /// output = factor output + weights V, of operands in two parts.
  __device__ void multiply_values_in_chains(int buffer, const Scores (&weights)[kRowTiles],
                                            const float (&factor)[kRowTiles][2]) {
    const bfloat16* values = values_of_lane(buffer);
    FragmentA high[kRowTiles][kKeys / 16];
    FragmentA low[kRowTiles][kKeys / 16];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) split_tiles(weights[m], high[m], low[m], split_weights);
    multiply_in_chains<kWidth / 16>(
        high, low, kWidth,
        [&](int k, int n, int part, uint32_t(&value)[4]) {
          load_tiles_transposed(value, values + (part * kKeys + k * 16) * kStride + n * 16);
        },
        [&](int m, int n, const Chain& chain) { chain.end_in(output_[m][n], factor[m]); });
  }

  const TileTask& task_;
  const KeysAndValues& operands_;
  int rows_;
  int buffers_;
  bfloat16* query_;
  bfloat16* keys_;
  bfloat16* values_;
  float minimum_;
  float maximum_[kRowTiles][2];
  float sum_[kRowTiles][2];
  float output_[kRowTiles][kOutputTiles][4];
};

}  // namespace cluster_attention::cuda
