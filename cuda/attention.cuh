#pragma once

// §1 exact attention: O = softmax(tau Q K^T + mask) V and its log-sum-exp.
//
// Method, precision: attention_tile.cuh. A block takes 16 queries per row tile and warp and all the
// keys they see; with the causal mask the blocks with the most keys start first.
// Layout: any strides; output rows past the real queries get 0, their log-sum-exp -Inf.
// Limits: D, E <= kWidth. A NaN in `value` reaches, with the causal mask, also the queries before
// it that share a block of keys with it (at most 63 keys away): 0 times NaN is NaN.

#include "cuda/attention_tile.cuh"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

struct AttentionParams {
  StoredRows query;        // (B,H,L,D)
  KeysAndValues operands;  // (B,H,S,D), (B,H,S,E)
  StoredOutput output;     // (B,H,L,E)
  float* logsumexp;        // (B,H,L) or null
  const int32_t* query_lengths;
  const int32_t* key_lengths;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t tiles;  // of queries in a sequence
  int32_t head_dim;
  int32_t value_dim;
  float scale;
  bool causal;
  Flags* flags;
};

__device__ inline TileTask attention_task(const AttentionParams& params, int tile_rows) {
  const int64_t sequence = blockIdx.x / params.tiles;
  const int64_t tile = params.tiles - 1 - blockIdx.x % params.tiles;
  TileTask task;
  task.batch = sequence / params.heads;
  task.head = sequence % params.heads;
  task.first_query = tile * tile_rows;
  task.queries = real_length(params.query_lengths, task.batch, params.query_length);
  const int64_t keys = real_length(params.key_lengths, task.batch, params.key_length);
  task.causal = params.causal;
  task.causal_offset = keys - task.queries;
  task.end_key = task.first_query < task.queries ? keys : 0;
  if (params.causal) {
    const int64_t last = task.first_query + tile_rows;
    const int64_t seen = (last < task.queries ? last : task.queries) + task.causal_offset;
    if (seen < task.end_key) task.end_key = seen > 0 ? seen : 0;
  }
  task.scale_log2 = params.scale * kLog2E;
  return task;
}

template <int kWidth, bool kSplit>
__global__ void attend(const AttentionParams params) {
  // query (B,H,L,D), key (B,H,S,D), value (B,H,S,E) -> output (B,H,L,E), logsumexp (B,H,L)
  using Tile = AttentionTile<kWidth, kSplit>;
  const int tile_rows = Tile::Sizes::kWarpRows * (static_cast<int>(blockDim.x) / kWarp);
  const TileTask task = attention_task(params, tile_rows);
  Tile tile(task, params.operands);
  const int64_t query = params.query.offset(task.batch, task.head, task.first_query);
  bool bad = tile.load_queries([&](int row, int column, float(&values)[8]) {
    load_eight(params.query, query + row * params.query.row_stride + column,
               params.head_dim - column, values);
  });
  tile.run();
  tile.join_sums();
  bad = bad || tile.saw_infinity();
  const int64_t first_row =
      (task.batch * params.heads + task.head) * params.query_length + task.first_query;
  const int64_t output = params.output.offset(task.batch, task.head, task.first_query);
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row_of(m, half);
      if (task.first_query + row >= params.query_length) continue;
      const bool real = task.first_query + row < task.queries;
      const SoftmaxState state = real ? tile.state(m, half) : SoftmaxState();
      const float normalizer = state.normalizer();
#pragma unroll
      for (int n = 0; n < Tile::kOutputTiles; ++n) {
        for (int i = 0; i < 2; ++i) {
          const int column = Tile::column(n) + i;
          if (column >= params.value_dim) continue;
          const float value = real ? tile.output(m, half, n, i) * normalizer : 0.0f;
          bad = bad || !(fabsf(value) < HUGE_VALF);
          params.output.store(output + row * params.output.row_stride + column, value);
        }
      }
      if (params.logsumexp != nullptr && lane_index() % 4 == 0) {
        params.logsumexp[first_row + row] = state.logsumexp();
      }
    }
  }
  if (bad) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
