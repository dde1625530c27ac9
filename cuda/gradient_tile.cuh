#pragma once

// One block's share of the backward of a softmax over keys, with tensor cores. The rows that a
// block owns stay in shared memory and meet the rows of the other side, which stream past them:
//
//   scores = own.first x met.first^T      change = own.second x met.second^T
//   first sums += dz x met.first          second sums += p x met.second
//
// Queries own with first = q, second = g (the gradient by their output) and get dq; keys own with
// first = k, second = v and get dk and dv: the same products, transposed. So nobody adds to what
// another block adds to.
//
// Method: FlashAttention-2 (Dao, 2023, algorithm 2) in two passes: seven products where that has
// five, for no atomic sums and no order among blocks. Tiles of kColumns met rows are copied while
// the tile before is used. p and dz stay in registers: the accumulators of one product are the
// operands of the next.
// Precision: bfloat16 operands, float32 sums; with kSplit, operands in two parts, three products,
// in chains of a tile (primitives/mma_chains.cuh). Sums run over the met rows in order, whoever
// shares the block. Limits: kWidth >= D, E; a multiple of 32. A block sums at most 128 columns (a
// slice).

#include "cuda/gradient_operands.h"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/mma_chains.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

constexpr int kGradientTileRows = 16;  // of one product

template <int kWidth, bool kSplit>
struct GradientSizes {
  static_assert(kWidth % 32 == 0, "rows are copied and multiplied by whole tiles");
  static constexpr int kColumns = kWidth <= 128 ? 32 : 16;
  static constexpr int kRowTiles = kWidth <= 64 ? 2 : 1;
  static constexpr int kWarpRows = kGradientTileRows * kRowTiles;
  static constexpr int kSlice = kWidth < 128 ? kWidth : 128;
  static constexpr int kSlices = kWidth / kSlice;
  static constexpr int kStride = kWidth + 8;  // eight rows begin in different banks
  static constexpr int kParts = kSplit ? 2 : 1;
  /// Two where they fit into Hopper's shared memory beside the rows of four warps; before sm_80 one
  /// where two do not fit.
  static constexpr int kBuffers = kWidth > 128 && kSplit ? 1 : 2;

  struct Layout {
    int64_t own;      // (2 tensors, kParts, rows of the block, kStride)
    int64_t met;      // (buffers, 2 tensors, kParts, kColumns, kStride)
    int64_t maximum;  // (buffers, kColumns)
    int64_t offset;   // the same
    int64_t bytes;
  };
  CA_HOST_DEVICE static Layout layout(int warps, int buffers) {
    SharedLayout parts;
    const int64_t own = parts.add<bfloat16>(int64_t{2} * kParts * kWarpRows * warps * kStride);
    const int64_t met = parts.add<bfloat16>(int64_t{2} * buffers * kParts * kColumns * kStride);
    const int64_t maximum = parts.add<float>(buffers * kColumns);
    const int64_t offset = parts.add<float>(buffers * kColumns);
    return {own, met, maximum, offset, parts.bytes()};
  }
};

/// Rows [begin, end) of one sequence: row i is row list[i], or i itself without a list.
struct GradientSide {
  const OperandPair* operands = nullptr;
  const int32_t* list = nullptr;
  int64_t begin = 0;
  int64_t end = 0;

  __device__ int64_t row(int64_t i) const { return list != nullptr ? list[i] : i; }
};

/// What the block works on. `maximum` and `offset` belong to the queries, by their rows: p = 2^(tau
/// log2(e) q·k - maximum), dz = p (g·v - offset).
struct GradientTask {
  int64_t batch = 0;
  int64_t head = 0;
  GradientSide own;
  GradientSide met;
  const float* maximum = nullptr;
  const float* offset = nullptr;
  float scale_log2 = 1.0f;  // tau log2(e)
  bool causal = false;      // query l sees keys up to l + causal_offset
  int64_t causal_offset = 0;
  int slice = 0;            // of the columns
  bool wants_first = true;  // sums
  bool wants_second = true;
};

template <int kWidth, bool kSplit>
class GradientTile {
 public:
  using Sizes = GradientSizes<kWidth, kSplit>;
  static constexpr int kRowTiles = Sizes::kRowTiles;
  static constexpr int kColumns = Sizes::kColumns;
  static constexpr int kStride = Sizes::kStride;
  static constexpr int kScoreTiles = kColumns / 8;
  static constexpr int kSumTiles = Sizes::kSlice / 8;
  using Scores = float[kRowTiles][kScoreTiles][4];
  using Sums = float[kRowTiles][kSumTiles][4];

  /// `met_terms`: the met rows are the queries, and their terms come with them.
  __device__ GradientTile(const GradientTask& task, bool met_terms)
      : task_(task), met_terms_(met_terms) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    buffers_ = buffers_of_block<Sizes>(warps);
    const auto layout = Sizes::layout(warps, buffers_);
    rows_ = Sizes::kWarpRows * warps;
    own_ = dynamic_shared<bfloat16>(layout.own);
    met_ = dynamic_shared<bfloat16>(layout.met);
    maximum_ = dynamic_shared<float>(layout.maximum);
    offset_ = dynamic_shared<float>(layout.offset);
  }

  /// Own row, relative to the first one, of this thread's row `half` of row tile m.
  __device__ static int row_of(int m, int half) {
    return warp_index() * Sizes::kWarpRows + m * kGradientTileRows + half * 8 + lane_index() / 4;
  }
  /// Met row relative to the tile, or column relative to the slice, of element i of tile n.
  __device__ static int column_of(int n, int i) { return n * 8 + lane_index() % 4 * 2 + i % 2; }

  /// step(buffer, first) for every tile of met rows, in order, once it is in shared memory.
  template <typename Step>
  __device__ void run(Step step) {
    const int64_t tiles = (task_.met.end - task_.met.begin + kColumns - 1) / kColumns;
    if (tiles <= 0) return;
    if (kSplit) clear_missing_parts();
    copy_own();
    copy_met(0, task_.met.begin);
    put_terms(0, get_terms(task_.met.begin));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = task_.met.begin + tile * kColumns;
      const bool more = tile + 1 < tiles;
      const int buffer = buffers_ == 1 ? 0 : static_cast<int>(tile % 2);
      wait_copies<0>();
      // Also: every warp is done with the other buffer, which the next copies fill.
      __syncthreads();
      Terms next = {0.0f, 0.0f};
      if (buffers_ == 2 && more) {
        copy_met(1 - buffer, first + kColumns);
        next = get_terms(first + kColumns);
      }
      step(buffer, first);
      if (!more) break;
      if (buffers_ == 1) {
        __syncthreads();
        copy_met(0, first + kColumns);
        next = get_terms(first + kColumns);
      }
      put_terms(buffers_ == 1 ? 0 : 1 - buffer, next);
    }
  }

  /// Whether no own row of the warp and no met row from `first` on (own queries) or in the tile
  /// there (own keys) see each other. Weights of 0 would do as well, but for NaN and Inf, which are
  /// not to reach rows by who shares their block.
  template <bool kOwnsKeys>
  __device__ bool is_hidden(int64_t first) const {
    if (!task_.causal) return false;
    const int64_t own = task_.own.begin + warp_index() * int64_t{Sizes::kWarpRows};
    return kOwnsKeys ? own > first + kColumns - 1 + task_.causal_offset
                     : first > own + Sizes::kWarpRows - 1 + task_.causal_offset;
  }

  /// maximum or offset of the met rows of a tile, in shared memory.
  __device__ const float* met_maximum(int buffer) const { return maximum_ + buffer * kColumns; }
  __device__ const float* met_offset(int buffer) const { return offset_ + buffer * kColumns; }

  /// scores = own x met^T of tensor 0 (first) or 1 (second).
  __device__ void multiply(int tensor, int buffer, Scores& scores) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
      }
    }
    // A: lane l names row l % 16 at depth 0 or 8; B: row l % 8 (+ 8) of two tiles
    const int lane = lane_index();
    const bfloat16* own =
        own_of(tensor, 0) + (warp_index() * Sizes::kWarpRows + lane % 16) * kStride + lane / 16 * 8;
    const bfloat16* met =
        met_of(buffer, tensor, 0) + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kWidth; k += 16) {
      FragmentA a[Sizes::kParts][kRowTiles];
#pragma unroll
      for (int part = 0; part < Sizes::kParts; ++part) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          load_tiles(a[part][m], own + (part * rows_ + m * kGradientTileRows) * kStride + k);
        }
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 2) {
        uint32_t b[Sizes::kParts][4];
#pragma unroll
        for (int part = 0; part < Sizes::kParts; ++part) {
          load_tiles(b[part], met + (part * kColumns + 8 * n) * kStride + k);
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          add_product(scores[m][n], a, m, b, 0);
          add_product(scores[m][n + 1], a, m, b, 2);
        }
      }
    }
  }

  /// sums += weights x met, of this block's slice of columns.
  __device__ void accumulate(int tensor, int buffer, const Scores& weights, Sums& sums) const {
    // B: lane l names met row l % 16, in column tile 0 or 1
    const int lane = lane_index();
    const bfloat16* met = met_of(buffer, tensor, 0) + lane % 16 * kStride + lane / 16 * 8 +
                          task_.slice * Sizes::kSlice;
    if constexpr (kSplit) {
      FragmentA high[kRowTiles][kColumns / 16];
      FragmentA low[kRowTiles][kColumns / 16];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) split_tiles(weights[m], high[m], low[m], split_weights);
      multiply_in_chains<kSumTiles / 2>(
          high, low, Sizes::kSlice,
          [&](int k, int n, int part, uint32_t(&b)[4]) {
            load_tiles_transposed(b, met + (part * kColumns + k * 16) * kStride + n * 16);
          },
          [&](int m, int n, const Chain& chain) { chain.end_in(sums[m][n]); });
    } else {
#pragma unroll
      for (int k = 0; k < kColumns / 16; ++k) {
        FragmentA a[1][kRowTiles];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) pack_tiles(weights[m], k, a[0][m]);
#pragma unroll
        for (int n = 0; n < kSumTiles; n += 2) {
          uint32_t b[1][4];
          load_tiles_transposed(b[0], met + k * 16 * kStride + n * 8);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            add_product(sums[m][n], a, m, b, 0);
            add_product(sums[m][n + 1], a, m, b, 2);
          }
        }
      }
    }
  }

 private:
  struct Terms {
    float maximum;
    float offset;
  };

  __device__ static void add_product(FragmentD& d, const FragmentA (&a)[Sizes::kParts][kRowTiles],
                                     int m, const uint32_t (&b)[Sizes::kParts][4], int first) {
    const FragmentB high = {b[0][first], b[0][first + 1]};
    if constexpr (kSplit) {
      const FragmentB low = {b[1][first], b[1][first + 1]};
      mma_split_16x8x16(d, a[0][m], a[1][m], high, low);
    } else {
      mma_bf16_16x8x16(d, a[0][m], high);
    }
  }

  __device__ bfloat16* own_of(int tensor, int part) const {
    return own_ + (tensor * Sizes::kParts + part) * rows_ * kStride;
  }
  __device__ bfloat16* met_of(int buffer, int tensor, int part) const {
    return met_ + ((buffer * 2 + tensor) * Sizes::kParts + part) * kColumns * kStride;
  }

  /// The low parts of operands that are whole without them.
  __device__ void clear_missing_parts() const {
    const auto clear = [](bfloat16* from, int count) {
      for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
        from[i] = {0};
      }
    };
    for (int tensor = 0; tensor < 2; ++tensor) {
      if (operand(task_.own, tensor).low == nullptr) clear(own_of(tensor, 1), rows_ * kStride);
      if (operand(task_.met, tensor).low != nullptr) continue;
      for (int buffer = 0; buffer < buffers_; ++buffer) {
        clear(met_of(buffer, tensor, 1), kColumns * kStride);
      }
    }
  }

  __device__ static const Operand& operand(const GradientSide& side, int tensor) {
    return tensor == 0 ? side.operands->first : side.operands->second;
  }

  __device__ void copy_own() const {
#pragma unroll
    for (int tensor = 0; tensor < 2; ++tensor) {
      copy_tensor(task_.own, tensor, rows_, task_.own.begin, own_of(tensor, 0));
    }
  }
  __device__ void copy_met(int buffer, int64_t first) const {
#pragma unroll
    for (int tensor = 0; tensor < 2; ++tensor) {
      copy_tensor(task_.met, tensor, kColumns, first, met_of(buffer, tensor, 0));
    }
    commit_copies();
  }

  /// `rows` rows from row `first` on, zeros past the end of the side and of the columns.
  __device__ void copy_tensor(const GradientSide& side, int tensor, int rows, int64_t first,
                              bfloat16* to) const {
    const Operand& from = operand(side, tensor);
    const int64_t sequence = task_.batch * from.batch_stride + task_.head * from.head_stride;
    constexpr int kChunks = kWidth / 8;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < rows * kChunks;
         i += static_cast<int>(blockDim.x)) {
      const int row = i / kChunks;
      const int column = i % kChunks * 8;
      const bool valid = first + row < side.end && column < from.columns;
      const int64_t source =
          valid ? sequence + side.row(first + row) * from.row_stride + column : 0;
      copy_async_16(to + row * kStride + column, from.high + source, valid);
      if (!kSplit || from.low == nullptr) continue;
      copy_async_16(to + (rows + row) * kStride + column, from.low + source, valid);
    }
  }

  /// Of met row first + thread: +Inf past the end, where its weights are 0.
  __device__ Terms get_terms(int64_t first) const {
    Terms terms = {HUGE_VALF, 0.0f};
    const int64_t place = first + static_cast<int64_t>(threadIdx.x);
    if (!met_terms_ || threadIdx.x >= kColumns || place >= task_.met.end) return terms;
    const int64_t row = task_.met.row(place);
    terms.maximum = task_.maximum[row];
    terms.offset = task_.offset[row];
    return terms;
  }
  __device__ void put_terms(int buffer, const Terms& terms) const {
    if (!met_terms_ || threadIdx.x >= kColumns) return;
    maximum_[buffer * kColumns + threadIdx.x] = terms.maximum;
    offset_[buffer * kColumns + threadIdx.x] = terms.offset;
  }

  const GradientTask& task_;
  const bool met_terms_;
  int rows_;
  int buffers_;
  bfloat16* own_;
  bfloat16* met_;
  float* maximum_;
  float* offset_;
};

}  // namespace cluster_attention::cuda
