#pragma once

// Tiles of 64 x 64 of the kernels of CAST whose rows are read fast and have at most 64 elements:
// what operand_tile.cuh and row_softmax.cuh have for any of them, without what nearly all of these
// need not ask.

#include "cuda/row_softmax.cuh"

namespace cluster_attention::cuda {

/// The product of two numbers of 32 bits by one instruction: where the compiler knows more of one
/// than its type, it multiplies 64 bits.
__device__ inline int64_t wide_product(int32_t a, int32_t b) {
#if defined(CA_CUDA_MODEL)
  return static_cast<int64_t>(a) * b;
#else
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#endif
}

/// Whether tiles are filled to their last column, past the last element with zeros, and multiplied
/// whole: nothing is asked between products, and operands arrive while others are multiplied.
template <bool kSplit, RowAccess kAccess>
constexpr bool kWholeTiles = !kSplit && kAccess == RowAccess::copies;

/// fetch_tile() of rows of at most 64 elements.
template <RowAccess kAccess, bool kSplit>
__device__ void fetch_small_tile(OperandTile<kSplit>& tile, const Rows& source,
                                 const int32_t* position, int64_t width) {
  if constexpr (kWholeTiles<kSplit, kAccess>) {
    constexpr int kRows = kTileThreads / 8;
    const int column = static_cast<int>(threadIdx.x) % 8 * 8;
    const int first_row = static_cast<int>(threadIdx.x) / 8;
    const bool real = column < static_cast<int>(width);
    const auto* elements =
        reinterpret_cast<const bfloat16*>(source.data) + source.offset + (real ? column : 0);
    bfloat16* to = tile.high + first_row * kTilePitch + column;
    int32_t places[kTile / kRows];  // read first: no read of shared memory passes a copy
#pragma unroll
    for (int i = 0; i < kTile / kRows; ++i) places[i] = position[first_row + i * kRows];
#pragma unroll
    for (int i = 0; i < kTile / kRows; ++i) {
      const int32_t row = places[i] < 0 ? 0 : places[i];
      copy_async_16(to + i * kRows * kTilePitch,
                    elements + wide_product(row, static_cast<int32_t>(source.stride)),
                    places[i] >= 0 && real);
    }
  } else {
    fetch_tile<kAccess>(tile, source, position, 0, width);
  }
}

/// VectorLoads of a tile that two groups of four warps both need: half of its rows by each.
class HalfLoads {
 public:
  __device__ void begin(const Rows& source, const int32_t* position, int64_t first, int count) {
    const float* from = source.data + source.offset + first + column();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t at = position[row(i)];
      x_[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (at >= 0 && column() < count) {
        x_[i] = *reinterpret_cast<const float4*>(
            from + wide_product(at, static_cast<int32_t>(source.stride)));
      }
    }
  }

  template <bool kSplit>
  __device__ void end(OperandTile<kSplit>& tile) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const float4& x = x_[i];
      const int place = row(i) * kTilePitch + column();
      uint2 high;
      if constexpr (kSplit) {
        uint2 low;
        split_pair(x.x, x.y, high.x, low.x);
        split_pair(x.z, x.w, high.y, low.y);
        *reinterpret_cast<uint2*>(tile.low + place) = low;
      } else {
        high = make_uint2(pack_bfloat16(x.x, x.y), pack_bfloat16(x.z, x.w));
      }
      *reinterpret_cast<uint2*>(tile.high + place) = high;
    }
  }

 private:
  static constexpr int kRows = kTileThreads / 16;
  static constexpr int kLoads = kTile / 2 / kRows;

  __device__ static int row(int i) {
    return static_cast<int>(threadIdx.y) * kTile / 2 + static_cast<int>(threadIdx.x) / 16 +
           i * kRows;
  }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % 16 * 4; }

  float4 x_[kLoads];
};

/// add_scores() of tiles from fetch_small_tile().
template <RowAccess kAccess, bool kSplit>
__device__ void add_small_scores(TileSums& scores, const OperandTile<kSplit>& rows,
                                 const OperandTile<kSplit>& columns, int64_t depth) {
  if constexpr (kWholeTiles<kSplit, kAccess>) {
    const ScorePlaces place;
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      FragmentA a;
      load_tiles(a, rows.high + place.rows + k);
#pragma unroll
      for (int n = 0; n < kTileColumns; n += 2) {
        uint32_t b[4];
        load_tiles(b, columns.high + place.columns + 8 * n * kTilePitch + k);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const FragmentB pair = {b[2 * i], b[2 * i + 1]};
          mma_bf16_16x8x16(scores[n + i], a, pair);
        }
      }
    }
  } else {
    add_scores(scores, rows, columns, depth);
  }
}

/// add_values() of a tile from fetch_small_tile().
template <RowAccess kAccess, bool kSplit>
__device__ void add_small_values(TileSums& output, const TileSums& weights,
                                 const OperandTile<kSplit>& values, int64_t columns) {
  add_values(output, weights, values, kWholeTiles<kSplit, kAccess> ? kTile : columns);
}

/// Whether all of a thread's values are numbers: one addition each, which need not be waited for.
class NumberCheck {
 public:
  __device__ void add(int i, float x) { zero_[i % 2] = fmaf(x, 0.0f, zero_[i % 2]); }
  __device__ bool passed() const { return zero_[0] + zero_[1] == 0.0f; }

 private:
  float zero_[2] = {0.0f, 0.0f};  // NaN after what is no number
};

/// RowSoftmax by a base that seldom moves. It is a score that the row had, and none of those so far
/// exceeds it by more than kSlack in the exponent: no row outgrows floats, and what was summed so
/// far is brought to another base for few tiles but the first. What a row gets depends on it alone.
struct SlackSoftmax {
  static constexpr float kSlack = 8.0f;
  float base[2] = {-INFINITY, -INFINITY};  // of the rows place.row(0) and place.row(1)
  float sum[2] = {0.0f, 0.0f};             // of this thread's columns; total() joins them

  /// Scores become 2^(exponent (score - base)). All lanes of a warp call it together.
  template <int kTiles>
  __device__ void weigh(TileSums& scores, TileSums (&output)[kTiles], float exponent) {
    float largest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          x[side] = fmaxf(x[side], scores[n][2 * half + side]);
        }
      }
      largest[half] = fmaxf(x[0], x[1]);
    }
    if (any(outgrows(0, largest[0], exponent) || outgrows(1, largest[1], exponent))) {
      move(largest, output, exponent);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float part[2] = {0.0f, 0.0f};
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = scores[n][2 * half + side];
          score = exp2_fast((score - base[half]) * exponent);
          part[side] += score;
        }
      }
      sum[half] += part[0] + part[1];
    }
  }

  /// The sum over all columns of a row.
  __device__ float total(int half) const { return warp_sum(sum[half], 4); }

 private:
  __device__ bool outgrows(int half, float score, float exponent) const {
    return (score - base[half]) * exponent > kSlack;
  }

  /// Brings the rows that have outgrown their base to that of their largest score.
  template <int kTiles>
  __device__ void move(const float (&largest)[2], TileSums (&output)[kTiles], float exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float joint = warp_reduce(
          largest[half], [](float a, float b) { return fmaxf(a, b); }, 4);
      const bool moves = outgrows(half, joint, exponent);
      const float factor = moves ? rescale(base[half], joint, exponent) : 1.0f;
      if (moves) base[half] = joint;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) output[t][n][2 * half + side] *= factor;
        }
      }
    }
  }
};

/// write_stored_row() without a question for each column where all 64 are wanted.
__device__ inline void write_whole_row(float* data, Storage storage, int64_t target, int64_t width,
                                       const TileSums& sums, int half) {
  const int64_t first = target + TilePlace().column(0, 0);
  const bool is_bfloat16 = storage == Storage::bfloat16;
  auto* halves = reinterpret_cast<bfloat16*>(data) + first;
  float* floats = data + first;
  const bool pairs = is_bfloat16 ? reinterpret_cast<uintptr_t>(halves) % sizeof(uint32_t) == 0
                                 : reinterpret_cast<uintptr_t>(floats) % sizeof(float2) == 0;
  if (!pairs || width < kTile) {
    write_stored_row(data, storage, target, width, sums, half);
  } else if (is_bfloat16) {
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
      *reinterpret_cast<uint32_t*>(halves + 8 * n) =
          pack_bfloat16(sums[n][2 * half], sums[n][2 * half + 1]);
    }
  } else {
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
      *reinterpret_cast<float2*>(floats + 8 * n) =
          make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
    }
  }
}

}  // namespace cluster_attention::cuda
