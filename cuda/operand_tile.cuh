#pragma once

// Tiles of 64 x 64 operands in shared memory and their products on tensor cores, for blocks of four
// warps of which each owns 16 of the 64 rows of the result:
//
//   scores (64,64) += rows (64,depth) x columns (64,depth)^T      add_scores
//   output (64,64) += weights (64,64) x values (64,64)            add_values
//
// float32 operands are cut in two bfloat16 each (kSplit, see mma.cuh); otherwise they are rounded
// to bfloat16. Accumulation is float32, that of add_values and add_transposed over cut operands in
// chains (mma_chains.cuh). Rows are taken from device memory by position, so that lists of members,
// inputs of weight 0 and the ends of sequences are all met by the same loop: position -1 is a row
// of zeros, and nothing is read for it.

#include "cuda/primitives/exp2.cuh"
#include "cuda/primitives/mma_chains.cuh"
#include "cuda/tile_fetch.cuh"

namespace cluster_attention::cuda {

/// Tiles of 8 columns of a warp's scores or output.
constexpr int kTileColumns = kTile / 8;

/// 16 rows and 64 columns of the block's product, in the registers of one warp.
using TileSums = FragmentD[kTileColumns];

/// Where the elements of a thread lie in the product: d[0], d[1] in row(0), d[2], d[3] in row(1).
struct TilePlace {
  int group;
  int pair;

  __device__ TilePlace() : group(lane_index() / 4), pair(lane_index() % 4 * 2) {}

  __device__ int row(int half) const { return 16 * warp_index() + group + 8 * half; }
  __device__ int column(int tile, int element) const { return 8 * tile + pair + element; }
};

__device__ inline void clear(TileSums& sums) {
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
  }
}

/// Where this lane's rows of both operands of scores begin in their tiles. A: lane l names row l %
/// 16 of the warp's rows, at depth 0 or 8; B: row l % 8 (+ 8) of two tiles.
struct ScorePlaces {
  int rows;
  int columns;

  __device__ ScorePlaces() {
    const int lane = lane_index();
    rows = (16 * warp_index() + lane % 16) * kTilePitch + lane / 16 * 8;
    columns = (lane % 8 + lane / 16 * 8) * kTilePitch + lane / 8 % 2 * 8;
  }
};

/// scores += rows x columns^T over the first `depth` elements (at most 64) of both tiles. With
/// kSwapped they have the bits that they would have with rows and columns exchanged.
template <bool kSplit, bool kSwapped = false>
__device__ void add_scores(TileSums& scores, const OperandTile<kSplit>& rows,
                           const OperandTile<kSplit>& columns, int64_t depth) {
  const ScorePlaces place;
  for (int k = 0; k < depth && k < kTile; k += 16) {
    FragmentA high, low;
    load_tiles(high, rows.high + place.rows + k);
    if constexpr (kSplit) load_tiles(low, rows.low + place.rows + k);
#pragma unroll
    for (int n = 0; n < kTileColumns; n += 2) {
      uint32_t b_high[4], b_low[4];
      load_tiles(b_high, columns.high + place.columns + 8 * n * kTilePitch + k);
      if constexpr (kSplit) load_tiles(b_low, columns.low + place.columns + 8 * n * kTilePitch + k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const FragmentB high_b = {b_high[2 * i], b_high[2 * i + 1]};
        if constexpr (kSplit) {
          const FragmentB low_b = {b_low[2 * i], b_low[2 * i + 1]};
          mma_split_16x8x16<kSwapped>(scores[n + i], high, low, high_b, low_b);
        } else {
          mma_bf16_16x8x16(scores[n + i], high, high_b);
        }
      }
    }
  }
}

/// output += A x values of operands in two parts; `b_place`: of this lane, for
/// load_tiles_transposed().
__device__ inline void add_in_chains(TileSums& output, const FragmentA (&high)[1][kTile / 16],
                                     const FragmentA (&low)[1][kTile / 16],
                                     const OperandTile<true>& values, int b_place,
                                     int64_t columns) {
  multiply_in_chains<kTileColumns / 2>(
      high, low, columns,
      [&](int k, int n, int part, uint32_t(&b)[4]) {
        const bfloat16* from = part == 0 ? values.high : values.low;
        load_tiles_transposed(b, from + b_place + 16 * k * kTilePitch + 16 * n);
      },
      [&](int, int n, const Chain& chain) { chain.end_in(output[n]); });
}

/// The same of operands in one part, of 16 columns of A.
__device__ inline void add_rounded(TileSums& output, const FragmentA& a,
                                   const OperandTile<false>& values, int b_place, int64_t columns) {
#pragma unroll
  for (int n = 0; n < kTileColumns; n += 2) {
    if (8 * n >= columns) break;
    uint32_t b[4];
    load_tiles_transposed(b, values.high + b_place + 8 * n);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FragmentB pair = {b[2 * i], b[2 * i + 1]};
      mma_bf16_16x8x16(output[n + i], a, pair);
    }
  }
}

/// output += weights x values; `columns` of the values' 64 are wanted.
template <bool kSplit>
__device__ void add_values(TileSums& output, const TileSums& weights,
                           const OperandTile<kSplit>& values, int64_t columns) {
  // B: lane l names row l % 16 of 16 positions, in column tile 0 or 1
  __syncwarp();  // lanes may have parted where the weights were made
  const int lane = lane_index();
  const int b_place = lane % 16 * kTilePitch + lane / 16 * 8;
  if constexpr (kSplit) {
    FragmentA high[1][kTile / 16];
    FragmentA low[1][kTile / 16];
    split_tiles(weights, high[0], low[0], split_pair);
    add_in_chains(output, high, low, values, b_place, columns);
  } else {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      FragmentA a;
      pack_tiles(weights, k, a);
      add_rounded(output, a, values, b_place + 16 * k * kTilePitch, columns);
    }
  }
}

/// Puts the block's weights, which are finite or NaN, rounded or split in a tile.
template <bool kSplit>
__device__ void store_tile(OperandTile<kSplit>& tile, const TileSums& sums) {
  const TilePlace place;
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = place.row(half) * kTilePitch + place.column(n, 0);
      const float left = sums[n][2 * half];
      const float right = sums[n][2 * half + 1];
      if constexpr (kSplit) {
        uint32_t high, low;
        split_weights(left, right, high, low);
        *reinterpret_cast<uint32_t*>(tile.high + at) = high;
        *reinterpret_cast<uint32_t*>(tile.low + at) = low;
      } else {
        *reinterpret_cast<uint32_t*>(tile.high + at) = pack_bfloat16(left, right);
      }
    }
  }
}

/// output += weights^T x values, of which `columns` of 64 are wanted, and, unless null, each column
/// of `totals` (16,8) += the sums of the columns of the weights: row i of both belongs to column i
/// of the weights.
template <bool kSplit>
__device__ void add_transposed(TileSums& output, FragmentD* totals,
                               const OperandTile<kSplit>& weights,
                               const OperandTile<kSplit>& values, int64_t columns) {
  // A: lane l names row l % 8 (+ 8) of 16 positions, in the first or second 8 of the warp's columns
  const int lane = lane_index();
  const int a_place =
      (lane % 8 + lane / 16 * 8) * kTilePitch + 16 * warp_index() + lane / 8 % 2 * 8;
  const int b_place = lane % 16 * kTilePitch + lane / 16 * 8;
  const FragmentB ones = {0x3f803f80u, 0x3f803f80u};
  if constexpr (kSplit) {
    FragmentA high[1][kTile / 16];
    FragmentA low[1][kTile / 16];
    Chain total;
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      load_tiles_transposed(high[0][k], weights.high + a_place + 16 * k * kTilePitch);
      load_tiles_transposed(low[0][k], weights.low + a_place + 16 * k * kTilePitch);
      if (totals == nullptr) continue;
      mma_bf16_16x8x16(total.sums, low[0][k], ones);
      mma_bf16_16x8x16(total.sums, high[0][k], ones);
    }
    if (totals != nullptr) total.end_in(*totals);
    add_in_chains(output, high, low, values, b_place, columns);
  } else {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      FragmentA a;
      load_tiles_transposed(a, weights.high + a_place + 16 * k * kTilePitch);
      if (totals != nullptr) mma_bf16_16x8x16(*totals, a, ones);
      add_rounded(output, a, values, b_place + 16 * k * kTilePitch, columns);
    }
  }
}

/// One of a thread's two rows of the sums to a row of floats in device memory, which begins at
/// `target` and is `width` elements long from there on.
__device__ inline void write_row(float* target, int64_t width, const TileSums& sums, int half) {
  const TilePlace place;
  const bool pairs = reinterpret_cast<uintptr_t>(target) % sizeof(float2) == 0;
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
    const int column = place.column(n, 0);
    const float left = sums[n][2 * half];
    const float right = sums[n][2 * half + 1];
    if (pairs && column + 1 < width) {
      *reinterpret_cast<float2*>(target + column) = make_float2(left, right);
    } else {
      if (column < width) target[column] = left;
      if (column + 1 < width) target[column + 1] = right;
    }
  }
}

/// The same to a row of an array in some storage, which begins at element `target`.
__device__ inline void write_stored_row(float* data, Storage storage, int64_t target, int64_t width,
                                        const TileSums& sums, int half) {
  if (storage == Storage::float32) {
    write_row(data + target, width, sums, half);
    return;
  }
  const TilePlace place;
  auto* row = reinterpret_cast<bfloat16*>(data) + target;
  const bool pairs = reinterpret_cast<uintptr_t>(row) % sizeof(uint32_t) == 0;
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
    const int column = place.column(n, 0);
    const float left = sums[n][2 * half];
    const float right = sums[n][2 * half + 1];
    if (pairs && column + 1 < width) {
      *reinterpret_cast<uint32_t*>(row + column) = pack_bfloat16(left, right);
    } else {
      if (column < width) row[column] = to_bfloat16(left);
      if (column + 1 < width) row[column + 1] = to_bfloat16(right);
    }
  }
}

/// scores += rows x columns^T over all of `dim`, 64 elements at a time. `rows` are the tiles of the
/// block's rows: where there are enough for all of dim they are filled when `load_rows` says so and
/// stay, else the first one is filled again and again. The positions must be visible, and the tiles
/// free, to all threads. kSwapped: see add_scores().
template <bool kSplit, bool kSwapped = false>
__device__ void multiply_rows(TileSums& scores, OperandTile<kSplit>* row_tiles, int row_tile_count,
                              bool load_rows, const Rows& rows, const int32_t* row_position,
                              OperandTile<kSplit>& column_tile, const Rows& columns,
                              const int32_t* column_position, int64_t dim) {
  const bool resident = static_cast<int64_t>(row_tile_count) * kTile >= dim;
  for (int64_t first = 0; first < dim; first += kTile) {
    if (first > 0) __syncthreads();  // the tiles are used up
    OperandTile<kSplit>& row_tile = row_tiles[resident ? first / kTile : 0];
    if (load_rows || !resident) fetch_tile(row_tile, rows, row_position, first, dim);
    fetch_tile(column_tile, columns, column_position, first, dim);
    tiles_arrive();
    __syncthreads();
    add_scores<kSplit, kSwapped>(scores, row_tile, column_tile, dim - first);
  }
}

/// 2^((from - to) exponent), nothing for a maximum of nothing.
__device__ inline float rescale(float from, float to, float exponent) {
  return from == -INFINITY ? 0.0f : exp2_fast((from - to) * exponent);
}

/// Neither NaN nor infinite.
__device__ inline bool is_number(float x) { return fabsf(x) < INFINITY; }

}  // namespace cluster_attention::cuda
