#pragma once

// What one block of attention works on, and how it lies in shared memory; see attention_tile.cuh.

#include "cuda/operands.h"
#include "cuda/primitives/bfloat16.cuh"
#include "cuda/primitives/shared_memory.cuh"

namespace cluster_attention::cuda {

constexpr int kTileRows = 16;  // of one product

/// Row tiles of a warp when nothing else needs registers and shared memory.
template <int kWidth, bool kSplit>
constexpr int kManyRowTiles = kWidth <= 64 && !kSplit ? 2 : 1;

template <int kWidth, bool kSplit, int kTiles = kManyRowTiles<kWidth, kSplit>,
          bool kSplitQuery = kSplit>
struct TileSizes {
  static_assert(kWidth % 32 == 0, "load_tiles takes 32 columns at once");
  static constexpr int kKeys = kWidth <= 64 ? (kSplit ? 32 : 64) : kWidth <= 128 ? 32 : 16;
  static constexpr int kRowTiles = kTiles;
  static constexpr int kWarpRows = kTileRows * kRowTiles;
  static constexpr int kStride = kWidth + 8;     // eight rows begin in different banks
  static constexpr int kParts = kSplit ? 2 : 1;  // of keys and values
  static constexpr int kQueryParts = kSplitQuery ? 2 : 1;
  static constexpr int kBuffers = 2;  // one before sm_80 where they do not fit

  struct Layout {
    int64_t query;   // (kQueryParts, 16 kRowTiles warps, kStride)
    int64_t keys;    // (buffers, kParts, kKeys, kStride)
    int64_t values;  // the same
    int64_t bytes;
  };
  CA_HOST_DEVICE static Layout layout(int warps, int buffers) {
    SharedLayout parts;
    const int64_t query = parts.add<bfloat16>(int64_t{kQueryParts} * kWarpRows * warps * kStride);
    const int64_t keys = parts.add<bfloat16>(int64_t{buffers} * kParts * kKeys * kStride);
    const int64_t values = parts.add<bfloat16>(int64_t{buffers} * kParts * kKeys * kStride);
    return {query, keys, values, parts.bytes()};
  }
};

/// What the block works on.
struct TileTask {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t first_query = 0;     // of the block
  int64_t masked_queries = 0;  // of the sequence, the first ones: they see no key, and are not read
  int64_t queries = 0;         // real ones of the sequence
  int64_t first_key = 0;
  int64_t end_key = 0;        // of the stretch
  int64_t causal_offset = 0;  // query l sees keys up to l + causal_offset
  bool causal = false;
  float scale_log2 = 1.0f;  // tau log2(e)
};

}  // namespace cluster_attention::cuda
