#pragma once

// Tiles of 64 x 64 operands in shared memory and their products on tensor cores, for blocks of four
// warps of which each owns 16 of the 64 rows of the result:
//
//   scores (64,64) += rows (64,depth) x columns (64,depth)^T      add_scores
//   output (64,64) += weights (64,64) x values (64,64)            add_values
//
// float32 operands are cut in two bfloat16 each (kSplit, see mma.cuh); otherwise they are rounded
// to bfloat16. Accumulation is float32. Rows are taken from device memory by position, so that
// lists of members, inputs of weight 0 and the ends of sequences are all met by the same loop:
// position -1 is a row of zeros, and nothing is read for it.

#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/exp2.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/rows.cuh"

namespace cluster_attention::cuda {

constexpr int kTile = 64;
constexpr int kTileWarps = kTile / 16;
constexpr int kTileThreads = kTileWarps * kWarp;
/// From row to row of a tile: eight rows of 16 bytes then lie in different banks.
constexpr int kTilePitch = kTile + 8;
/// Tiles of 8 columns of a warp's scores or output.
constexpr int kTileColumns = kTile / 8;

/// 16 rows and 64 columns of the block's product, in the registers of one warp.
using TileSums = FragmentD[kTileColumns];

/// 64 rows of 64 numbers.
template <bool kSplit>
struct alignas(16) OperandTile {
  bfloat16 high[kTile * kTilePitch];
  bfloat16 low[kSplit ? kTile * kTilePitch : 8];
};

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

/// Products take 16 elements at a time: what is past the last one has zeros up to there.
__device__ inline int padded_count(int count) { return (count + 15) / 16 * 16; }

/// Puts 16 bytes of operands in a tile: eight elements from element `place` on.
template <bool kSplit>
__device__ inline void store_chunk(OperandTile<kSplit>& tile, int place, const float (&x)[8]) {
  uint4 high, low;
  if constexpr (kSplit) {
    split_pair(x[0], x[1], high.x, low.x);
    split_pair(x[2], x[3], high.y, low.y);
    split_pair(x[4], x[5], high.z, low.z);
    split_pair(x[6], x[7], high.w, low.w);
    *reinterpret_cast<uint4*>(tile.low + place) = low;
  } else {
    high = make_uint4(pack_bfloat16(x[0], x[1]), pack_bfloat16(x[2], x[3]),
                      pack_bfloat16(x[4], x[5]), pack_bfloat16(x[6], x[7]));
  }
  *reinterpret_cast<uint4*>(tile.high + place) = high;
}

/// Elements [column, column + 8) of `count` wanted ones of a row, however they lie in memory.
template <bool kSplit>
__device__ void load_chunk(OperandTile<kSplit>& tile, const Rows& source, int32_t at, int row,
                           int column, int64_t first, int count) {
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] = at != kNoRow && column + i < count ? source.element(at, first + column + i) : 0.0f;
  }
  store_chunk(tile, row * kTilePitch + column, x);
}

/// Rows of bfloat16 that are used as they are: their chunks of 16 bytes pass no register.
template <bool kSplit>
__device__ void copy_chunks(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                            int64_t first, int count) {
  constexpr int kRows = kTileThreads / 8;
  const int column = static_cast<int>(threadIdx.x) % 8 * 8;
  if (column >= padded_count(count)) return;
  const auto* elements = reinterpret_cast<const bfloat16*>(source.data) + source.offset + first;
#pragma unroll
  for (int i = 0; i < kTile / kRows; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 8 + i * kRows;
    const int32_t at = position[row];
    if (at == kExtraRow) {
      load_chunk(tile, source, at, row, column, first, count);
      continue;
    }
    const int place = row * kTilePitch + column;
    copy_async_16(tile.high + place, elements + (at < 0 ? 0 : at * source.stride) + column,
                  at >= 0 && column < count);
    if constexpr (kSplit) {
      *reinterpret_cast<uint4*>(tile.low + place) = make_uint4(0, 0, 0, 0);
    }
  }
}

/// Rows of floats, 16 bytes at a time; all loads of a thread are under way before the first one is
/// waited for.
template <bool kSplit>
__device__ void load_vectors(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                             int64_t first, int count) {
  constexpr int kRows = kTileThreads / 16;
  constexpr int kLoads = kTile / kRows;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  if (column >= padded_count(count)) return;
  const float* origin = source.origin != nullptr ? source.origin + first + column : nullptr;
  float4 x[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int32_t at = position[static_cast<int>(threadIdx.x) / 16 + i * kRows];
    x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (at != kNoRow && column < count) {
      x[i] = *reinterpret_cast<const float4*>(source.plain_row(at) + first + column);
    }
  }
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 16 + i * kRows;
    if (source.round) {
      x[i] = make_float4(round_to_bfloat16(x[i].x), round_to_bfloat16(x[i].y),
                         round_to_bfloat16(x[i].z), round_to_bfloat16(x[i].w));
    }
    if (origin != nullptr && column < count && position[row] != kNoRow) {
      x[i].x -= origin[0];
      x[i].y -= origin[1];
      x[i].z -= origin[2];
      x[i].w -= origin[3];
    }
    const int place = row * kTilePitch + column;
    if constexpr (kSplit) {
      uint2 high, low;
      split_pair(x[i].x, x[i].y, high.x, low.x);
      split_pair(x[i].z, x[i].w, high.y, low.y);
      *reinterpret_cast<uint2*>(tile.high + place) = high;
      *reinterpret_cast<uint2*>(tile.low + place) = low;
    } else {
      *reinterpret_cast<uint2*>(tile.high + place) =
          make_uint2(pack_bfloat16(x[i].x, x[i].y), pack_bfloat16(x[i].z, x[i].w));
    }
  }
}

/// Starts to fill a tile with elements [first, first + 64) of the rows at `position` (64, shared
/// memory; kNoRow: zeros); what lies past `width` is 0. All threads of the block call it;
/// tiles_arrive() and a barrier must follow. kAccess may say what source.access() would.
template <RowAccess kAccess = RowAccess::any, bool kSplit>
__device__ void fetch_tile(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                           int64_t first, int64_t width) {
  const int count = width - first < kTile ? static_cast<int>(width - first) : kTile;
  const RowAccess access = kAccess == RowAccess::any ? source.access(first, count) : kAccess;
  if (access == RowAccess::copies) {
    copy_chunks(tile, source, position, first, count);
  } else if (access == RowAccess::vectors) {
    load_vectors(tile, source, position, first, count);
  } else {
    const int column = static_cast<int>(threadIdx.x) % 8 * 8;
    if (column >= padded_count(count)) return;
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / 8; row < kTile; row += kTileThreads / 8) {
      load_chunk(tile, source, position[row], row, column, first, count);
    }
  }
}

/// Waits for what this thread has fetched; a barrier shows it to the others.
__device__ inline void tiles_arrive() {
  commit_copies();
  wait_copies<0>();
}

/// fetch_tile() that has arrived: only a barrier must follow.
template <bool kSplit>
__device__ void load_tile(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                          int64_t first, int64_t width) {
  fetch_tile(tile, source, position, first, width);
  tiles_arrive();
}

/// scores += rows x columns^T over the first `depth` elements (at most 64) of both tiles.
template <bool kSplit>
__device__ void add_scores(TileSums& scores, const OperandTile<kSplit>& rows,
                           const OperandTile<kSplit>& columns, int64_t depth) {
  // A: lane l names row l % 16 of the warp's rows, at depth 0 or 8; B: row l % 8 (+ 8) of two tiles
  const int lane = lane_index();
  const int a_place = (16 * warp_index() + lane % 16) * kTilePitch + lane / 16 * 8;
  const int b_place = (lane % 8 + lane / 16 * 8) * kTilePitch + lane / 8 % 2 * 8;
  for (int k = 0; k < depth && k < kTile; k += 16) {
    FragmentA high, low;
    load_tiles(high, rows.high + a_place + k);
    if constexpr (kSplit) load_tiles(low, rows.low + a_place + k);
#pragma unroll
    for (int n = 0; n < kTileColumns; n += 2) {
      uint32_t b_high[4], b_low[4];
      load_tiles(b_high, columns.high + b_place + 8 * n * kTilePitch + k);
      if constexpr (kSplit) load_tiles(b_low, columns.low + b_place + 8 * n * kTilePitch + k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const FragmentB high_b = {b_high[2 * i], b_high[2 * i + 1]};
        if constexpr (kSplit) {
          const FragmentB low_b = {b_low[2 * i], b_low[2 * i + 1]};
          mma_split_16x8x16(scores[n + i], high, low, high_b, low_b);
        } else {
          mma_bf16_16x8x16(scores[n + i], high, high_b);
        }
      }
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
#pragma unroll
  for (int k = 0; k < kTile / 16; ++k) {
    const FragmentD& left = weights[2 * k];
    const FragmentD& right = weights[2 * k + 1];
    FragmentA high, low;
    if constexpr (kSplit) {
      split_pair(left[0], left[1], high[0], low[0]);
      split_pair(left[2], left[3], high[1], low[1]);
      split_pair(right[0], right[1], high[2], low[2]);
      split_pair(right[2], right[3], high[3], low[3]);
    } else {
      high[0] = pack_bfloat16(left[0], left[1]);
      high[1] = pack_bfloat16(left[2], left[3]);
      high[2] = pack_bfloat16(right[0], right[1]);
      high[3] = pack_bfloat16(right[2], right[3]);
    }
#pragma unroll
    for (int n = 0; n < kTileColumns; n += 2) {
      if (8 * n >= columns) break;
      uint32_t b_high[4], b_low[4];
      load_tiles_transposed(b_high, values.high + b_place + 16 * k * kTilePitch + 8 * n);
      if constexpr (kSplit) {
        load_tiles_transposed(b_low, values.low + b_place + 16 * k * kTilePitch + 8 * n);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const FragmentB high_b = {b_high[2 * i], b_high[2 * i + 1]};
        if constexpr (kSplit) {
          const FragmentB low_b = {b_low[2 * i], b_low[2 * i + 1]};
          mma_split_16x8x16(output[n + i], high, low, high_b, low_b);
        } else {
          mma_bf16_16x8x16(output[n + i], high, high_b);
        }
      }
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
#pragma unroll
  for (int k = 0; k < kTile; k += 16) {
    FragmentA high, low;
    load_tiles_transposed(high, weights.high + a_place + k * kTilePitch);
    if constexpr (kSplit) load_tiles_transposed(low, weights.low + a_place + k * kTilePitch);
    if (totals != nullptr) {
      if constexpr (kSplit) mma_bf16_16x8x16(*totals, low, ones);
      mma_bf16_16x8x16(*totals, high, ones);
    }
#pragma unroll
    for (int n = 0; n < kTileColumns; n += 2) {
      if (8 * n >= columns) break;
      uint32_t b_high[4], b_low[4];
      load_tiles_transposed(b_high, values.high + b_place + k * kTilePitch + 8 * n);
      if constexpr (kSplit) {
        load_tiles_transposed(b_low, values.low + b_place + k * kTilePitch + 8 * n);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const FragmentB high_b = {b_high[2 * i], b_high[2 * i + 1]};
        if constexpr (kSplit) {
          const FragmentB low_b = {b_low[2 * i], b_low[2 * i + 1]};
          mma_split_16x8x16(output[n + i], high, low, high_b, low_b);
        } else {
          mma_bf16_16x8x16(output[n + i], high, high_b);
        }
      }
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

/// scores += rows x columns^T over all of `dim`, 64 elements at a time. `rows` are the tiles of the
/// block's rows: where there are enough for all of dim they are filled when `load_rows` says so and
/// stay, else the first one is filled again and again. The positions must be visible, and the tiles
/// free, to all threads.
template <bool kSplit>
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
    add_scores(scores, row_tile, column_tile, dim - first);
  }
}

/// 2^((from - to) exponent), nothing for a maximum of nothing.
__device__ inline float rescale(float from, float to, float exponent) {
  return from == -INFINITY ? 0.0f : exp2_fast((from - to) * exponent);
}

/// Neither NaN nor infinite.
__device__ inline bool is_number(float x) { return fabsf(x) < INFINITY; }

}  // namespace cluster_attention::cuda
