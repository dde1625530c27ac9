#pragma once

// Tiles of 64 x 64 operands in shared memory (operand_tile.cuh), and how they are filled with rows
// of device memory: 16 bytes at a time where strides and alignment allow it, bfloat16 that are used
// as they are without passing a register.

#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/rows.cuh"

namespace cluster_attention::cuda {

constexpr int kTile = 64;
constexpr int kTileWarps = kTile / 16;
constexpr int kTileThreads = kTileWarps * kWarp;
/// From row to row of a tile: eight rows of 16 bytes then lie in different banks.
constexpr int kTilePitch = kTile + 8;
/// 64 rows of 64 numbers.
template <bool kSplit>
struct alignas(16) OperandTile {
  bfloat16 high[kTile * kTilePitch];
  bfloat16 low[kSplit ? kTile * kTilePitch : 8];
};

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
    if (source.extra != nullptr && at == kExtraRow) {
      load_chunk(tile, source, at, row, column, first, count);
      continue;
    }
    const int place = row * kTilePitch + column;
    copy_async_16(tile.high + place, elements + (at < 0 ? 0 : source.near_row(at)) + column,
                  at >= 0 && column < count);
    if constexpr (kSplit) {
      *reinterpret_cast<uint4*>(tile.low + place) = make_uint4(0, 0, 0, 0);
    }
  }
}

/// Rows of floats, 16 bytes at a time: what a thread has of a tile, on its way.
class VectorLoads {
 public:
  /// All loads of a thread are under way before the first one is waited for.
  __device__ void begin(const Rows& source, const int32_t* position, int64_t first, int count) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t at = position[row(i)];
      x_[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (at != kNoRow && column() < count) {
        x_[i] = *reinterpret_cast<const float4*>(source.plain_row(at) + first + column());
      }
    }
  }

  template <bool kSplit>
  __device__ void end(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                      int64_t first, int count) {
    if (column() >= padded_count(count)) return;
    const float* origin = source.origin != nullptr ? source.origin + first + column() : nullptr;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float4& x = x_[i];
      if (source.round) {
        x = make_float4(round_to_bfloat16(x.x), round_to_bfloat16(x.y), round_to_bfloat16(x.z),
                        round_to_bfloat16(x.w));
      }
      if (origin != nullptr && column() < count && position[row(i)] != kNoRow) {
        x = make_float4(x.x - origin[0], x.y - origin[1], x.z - origin[2], x.w - origin[3]);
      }
      const int place = row(i) * kTilePitch + column();
      if constexpr (kSplit) {
        uint2 high, low;
        split_pair(x.x, x.y, high.x, low.x);
        split_pair(x.z, x.w, high.y, low.y);
        *reinterpret_cast<uint2*>(tile.high + place) = high;
        *reinterpret_cast<uint2*>(tile.low + place) = low;
      } else {
        *reinterpret_cast<uint2*>(tile.high + place) =
            make_uint2(pack_bfloat16(x.x, x.y), pack_bfloat16(x.z, x.w));
      }
    }
  }

 private:
  static constexpr int kRows = kTileThreads / 16;
  static constexpr int kLoads = kTile / kRows;

  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / 16 + i * kRows; }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % 16 * 4; }

  float4 x_[kLoads];
};

/// Elements of a tile from element `first` on.
__device__ inline int tile_count(int64_t first, int64_t width) {
  return width - first < kTile ? static_cast<int>(width - first) : kTile;
}

/// Starts to fill a tile with elements [first, first + 64) of the rows at `position` (64, shared
/// memory; kNoRow: zeros); what lies past `width` is 0. All threads of the block call it;
/// tiles_arrive() and a barrier must follow. kAccess may say what source.access() would.
template <RowAccess kAccess = RowAccess::any, bool kSplit>
__device__ void fetch_tile(OperandTile<kSplit>& tile, const Rows& source, const int32_t* position,
                           int64_t first, int64_t width) {
  const int count = tile_count(first, width);
  const RowAccess access = kAccess == RowAccess::any ? source.access(first, count) : kAccess;
  if (access == RowAccess::copies) {
    copy_chunks(tile, source, position, first, count);
  } else if (access == RowAccess::vectors) {
    VectorLoads loads;
    loads.begin(source, position, first, count);
    loads.end(tile, source, position, first, count);
  } else {
    const int column = static_cast<int>(threadIdx.x) % 8 * 8;
    if (column >= padded_count(count)) return;
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / 8; row < kTile; row += kTileThreads / 8) {
      load_chunk(tile, source, position[row], row, column, first, count);
    }
  }
}

/// Two tiles of the same rows of two tensors, from elements `first` and `other_first` on.
template <RowAccess kAccess, bool kSplit>
__device__ void fetch_tiles(OperandTile<kSplit>& tile, const Rows& source, int64_t first,
                            int64_t width, OperandTile<kSplit>& other_tile, const Rows& other,
                            int64_t other_first, int64_t other_width, const int32_t* position) {
  if constexpr (kAccess == RowAccess::vectors) {
    VectorLoads loads, other_loads;
    const int count = tile_count(first, width);
    const int other_count = tile_count(other_first, other_width);
    loads.begin(source, position, first, count);
    other_loads.begin(other, position, other_first, other_count);
    loads.end(tile, source, position, first, count);
    other_loads.end(other_tile, other, position, other_first, other_count);
  } else {
    fetch_tile<kAccess>(tile, source, position, first, width);
    fetch_tile<kAccess>(other_tile, other, position, other_first, other_width);
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

}  // namespace cluster_attention::cuda
