#pragma once

// The last step of clustered attention. Clustered: output_i = V^c_j, j the cluster of query i.
// Improved: output_i = V^c_j + sum_{t in T_j} (m̂_j p_it - A^c_jt) v_t
//                    = base_j + m̂_j sum_t p_it v_t,  base_j = V^c_j - sum_t A^c_jt v_t.
//
// Method: queries are sorted by cluster; a block takes a tile of one cluster's members and the k
// keys of that cluster through AttentionTile, which fetches their rows by their indices. The tile
// of a block is found by a sum over the clusters' numbers of tiles: nothing is asked of the host.
// Precision, limits: attention_tile.cuh.

#include "cuda/attention_tile.cuh"
#include "cuda/clustered_pass.h"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

struct ImproveParams {
  StoredRows query;        // (B,H,L,D)
  KeysAndValues operands;  // (B,H,S,D), (B,H,S,E)
  ClusteredPass pass;
  StoredOutput output;     // (B,H,L,E)
  const int32_t* offsets;  // (B,H,C+1)
  const int32_t* order;    // (B,H,L)
  const int32_t* key_lengths;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t clusters;
  int64_t tiles;  // most that the clusters of a sequence can have
  int32_t head_dim;
  int32_t value_dim;
  int32_t top_k;
  float scale;
  Flags* flags;
};

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

template <int kWidth, bool kSplit>
__global__ void improve(const ImproveParams params) {
  // members' query (rows, D), key, value of T_j (k, D), (k, E) -> output rows (rows, E)
  using Tile = AttentionTile<kWidth, kSplit>;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int tile_rows = Tile::Sizes::kWarpRows * warps;
  const int64_t sequence = blockIdx.x / params.tiles;
  const MemberTile members = find_member_tile(
      params.offsets + sequence * (params.clusters + 1), params.clusters, blockIdx.x % params.tiles,
      tile_rows, dynamic_shared<int32_t>(Tile::Sizes::layout(warps).bytes));
  if (members.cluster < 0) return;
  TileTask task;
  task.batch = sequence / params.heads;
  task.head = sequence % params.heads;
  const int64_t rows = members.end - members.first;
  task.queries = rows < tile_rows ? rows : tile_rows;
  const int64_t keys = real_length(params.key_lengths, task.batch, params.key_length);
  task.end_key = keys < params.top_k ? keys : params.top_k;
  task.scale_log2 = params.scale * kLog2E;
  const int64_t cluster = sequence * params.clusters + members.cluster;
  task.key_rows = params.pass.top_keys + cluster * params.top_k;
  const int32_t* order = params.order + sequence * params.query_length + members.first;
  const int64_t query = params.query.offset(task.batch, task.head, 0);

  Tile tile(task, params.operands);
  bool bad = tile.load_queries(params.head_dim, [&](int row, int column) {
    return params.query.load(query + order[row] * params.query.row_stride + column);
  });
  tile.run();
  tile.join_sums();
  bad = bad || tile.saw_infinity();
  const float mass = params.pass.masses[cluster];
  const float* base = params.pass.bases + cluster * params.value_dim;
  const int64_t output = params.output.offset(task.batch, task.head, 0);
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_of(m, half);
      if (row >= task.queries) continue;
      const float factor = tile.state(m, half).normalizer() * mass;
      const int64_t place = output + order[row] * params.output.row_stride;
#pragma unroll
      for (int n = 0; n < Tile::kOutputTiles; ++n) {
        for (int i = 0; i < 2; ++i) {
          const int column = Tile::column(n) + i;
          if (column >= params.value_dim) continue;
          const float value = fmaf(tile.output(m, half, n, i), factor, base[column]);
          bad = bad || !(fabsf(value) < HUGE_VALF);
          params.output.store(place + column, value);
        }
      }
    }
  }
  if (bad) mark_non_finite(params.flags);
}

struct SpreadParams {
  const float* values;    // (B,H,C,E)
  const int32_t* labels;  // (B,H,L)
  StoredOutput output;    // (B,H,L,E)
  int64_t heads;
  int64_t query_length;
  int64_t clusters;
  int64_t queries;  // of all sequences
  int32_t value_dim;
};

constexpr int kSpreadWarps = 4;
constexpr int kSpreadQueries = 8;  // of a warp

/// output_i = values of the cluster of query i; a warp per row. Bound by writing the output.
__global__ void __launch_bounds__(kSpreadWarps* kWarp) spread(const SpreadParams params) {
  // values (B,H,C,E), labels (B,H,L) -> output (B,H,L,E)
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kSpreadWarps + warp_index();
  const int64_t first = warp * kSpreadQueries;
  for (int64_t query = first; query < first + kSpreadQueries && query < params.queries; ++query) {
    const int32_t label = params.labels[query];
    if (label < 0) continue;  // written by join_stretches
    const int64_t sequence = query / params.query_length;
    const float* value = params.values + (sequence * params.clusters + label) * params.value_dim;
    const int64_t row = params.output.offset(sequence / params.heads, sequence % params.heads,
                                             query % params.query_length);
    for (int column = lane_index(); column < params.value_dim; column += kWarp) {
      params.output.store(row + column, value[column]);
    }
  }
}

}  // namespace cluster_attention::cuda
