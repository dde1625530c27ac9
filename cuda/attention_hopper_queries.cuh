#pragma once

// The queries of attention_hopper.cuh.

#include "cuda/attention_hopper_ring.cuh"

namespace cluster_attention::cuda {

/// The 64 queries of a warpgroup as a tile in shared memory, with kSplit their low parts after it,
/// by its threads; true where a NaN or Inf was met.
template <int kWidth, bool kSplit>
__device__ bool load_hopper_queries(const AttentionParams& params, const TileTask& task,
                                    int warpgroup, bfloat16* tile) {
  using Sizes = HopperSizes<kWidth, kSplit>;
  constexpr int kChunks = kWidth / 8;
  bool bad = false;
  for (int i = static_cast<int>(threadIdx.x) % kWarpgroup; i < kConsumerRows * kChunks;
       i += kWarpgroup) {
    const int row = i / kChunks;
    const int column = i % kChunks * 8;
    const int64_t query = task.first_query + warpgroup * kConsumerRows + row;
    float values[8] = {};
    if (query >= task.masked_queries && query < task.queries) {
      const int64_t at = params.query.offset(task.batch, task.head, query) + column;
      load_eight(params.query, at, params.head_dim - column, values);
    }
    uint32_t high[4];
    uint32_t low[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      split_pair(values[2 * j], values[2 * j + 1], high[j], low[j]);
      bad = bad || pair_is_bad(high[j]);
    }
    bfloat16* to = tile + column / kSwizzledColumns * kConsumerRows * kSwizzledColumns +
                   swizzled(row, column % kSwizzledColumns / 8);
    *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
    if constexpr (kSplit) {
      *reinterpret_cast<uint4*>(to + Sizes::kQueryTile) =
          make_uint4(low[0], low[1], low[2], low[3]);
    }
  }
  return bad;
}

}  // namespace cluster_attention::cuda
