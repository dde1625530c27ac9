#pragma once

// Tiles of the members of clusters, where only the device knows how many members each has.

#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

/// Tiles of at most `tile_rows` members that the clusters of a sequence can have together.
CA_HOST_DEVICE inline int64_t most_tiles(int64_t clusters, int64_t queries, int64_t tile_rows) {
  const int64_t active = clusters < queries ? clusters : queries;
  return active + queries / tile_rows;
}

struct MemberTile {
  int64_t cluster = -1;  // -1: the sequence has fewer tiles
  int64_t first = 0;     // place in the order
  int64_t end = 0;       // of the cluster
};

/// Tile `tile` of a sequence, in the order of the clusters; for all threads of the block.
/// `scratch`: 32 + 3 words of shared memory.
__device__ inline MemberTile find_member_tile(const int32_t* offsets, int64_t clusters,
                                              int64_t tile, int tile_rows, int32_t* scratch) {
  MemberTile found;
  int64_t before = 0;  // tiles of the clusters so far
  for (int64_t first = 0; first < clusters; first += blockDim.x) {
    const int64_t cluster = first + threadIdx.x;
    int32_t begin = 0;
    int32_t end = 0;
    if (cluster < clusters) {
      begin = offsets[cluster];
      end = offsets[cluster + 1];
    }
    const int32_t mine = (end - begin + tile_rows - 1) / tile_rows;
    int32_t total = 0;
    const int64_t start = before + block_exclusive_sum(mine, scratch, &total);
    if (tile >= start && tile < start + mine) {
      scratch[32] = static_cast<int32_t>(cluster);
      scratch[33] = begin + static_cast<int32_t>(tile - start) * tile_rows;
      scratch[34] = end;
    }
    if (tile < before + total) {  // the same in every thread
      __syncthreads();
      found = {scratch[32], scratch[33], scratch[34]};
      return found;
    }
    before += total;
  }
  return found;
}

}  // namespace cluster_attention::cuda
