#pragma once

// §1 exact attention: O = softmax(tau Q K^T + mask) V and its log-sum-exp.
//
// Method, precision: attention_tile.cuh. A block takes 16 queries per row tile and warp and all the
// keys they see; with the causal mask the blocks with the most keys start first.
// Layout: any strides; output rows past the real queries get 0, their log-sum-exp -Inf.
// Limits: D, E <= kWidth. A NaN in `value` reaches, with the causal mask, also queries before it
// whose warp (on Hopper 64 rows) has one that sees its block of keys: 0 times NaN is NaN.

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

/// Queries [first_query, first_query + tile_rows) of a sequence and all the keys they see.
__device__ inline TileTask attention_task(const AttentionParams& params, int64_t sequence,
                                          int64_t first_query, int64_t tile_rows) {
  TileTask task;
  task.batch = sequence / params.heads;
  task.head = sequence % params.heads;
  task.first_query = first_query;
  task.queries = real_length(params.query_lengths, task.batch, params.query_length);
  const int64_t keys = real_length(params.key_lengths, task.batch, params.key_length);
  task.causal = params.causal;
  task.causal_offset = keys - task.queries;
  task.end_key = task.first_query < task.queries ? keys : 0;
  task.masked_queries = keys > 0 ? 0 : task.queries;
  if (params.causal) {
    task.masked_queries = task.causal_offset < 0 ? -task.causal_offset : 0;
    const int64_t last = task.first_query + tile_rows;
    const int64_t seen = (last < task.queries ? last : task.queries) + task.causal_offset;
    if (seen < task.end_key) task.end_key = seen > 0 ? seen : 0;
  }
  task.scale_log2 = params.scale * kLog2E;
  return task;
}

/// Those of this block: the last queries of a sequence, which may see the most keys, come first.
__device__ inline TileTask attention_task(const AttentionParams& params, int64_t tile_rows) {
  const int64_t tile = params.tiles - 1 - blockIdx.x % params.tiles;
  return attention_task(params, blockIdx.x / params.tiles, tile * tile_rows, tile_rows);
}

/// The task's queries into its tile. True in threads that met a NaN or Inf.
template <typename Tile>
__device__ bool load_task_queries(const Tile& tile, const AttentionParams& params,
                                  const TileTask& task) {
  const int64_t query = params.query.offset(task.batch, task.head, task.first_query);
  return tile.load_queries([&](int row, int column, float(&values)[8]) {
    load_eight(params.query, query + row * params.query.row_stride + column,
               params.head_dim - column, values);
  });
}

/// What a query gets where the sum of its weights is 0: it sees no key, or all its logits are -Inf.
__device__ inline float without_weights(const TileTask& task, int64_t query) {
  return query >= task.masked_queries && query < task.queries ? nanf("") : 0.0f;
}

/// Its log-sum-exp.
__device__ inline float logsumexp_of(const TileTask& task, int64_t query,
                                     const SoftmaxState& state) {
  return state.sum == 0.0f ? state.logsumexp() + without_weights(task, query) : state.logsumexp();
}

/// Output and log-sum-exp of a query, by the four lanes that have its sums as products leave them:
/// sum(n, i) is that of column 8 n + 2 (lane % 4) + i. True where a number is not finite.
template <int kTiles, typename Sum>
__device__ bool write_query(const AttentionParams& params, const TileTask& task, int64_t query,
                            const SoftmaxState& state, Sum sum) {
  const float normalizer = state.normalizer();
  const float none = without_weights(task, query);
  const int64_t output = params.output.offset(task.batch, task.head, query);
  bool bad = false;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int column = n * 8 + lane_index() % 4 * 2;
    if (column >= params.value_dim) continue;
    float pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      pair[i] = state.sum == 0.0f ? none : sum(n, i) * normalizer;
      bad = bad || !(fabsf(pair[i]) < HUGE_VALF);
    }
    store_pair(params.output, output + column, params.value_dim - column, pair[0], pair[1]);
  }
  if (params.logsumexp != nullptr && lane_index() % 4 == 0) {
    const int64_t sequence = task.batch * params.heads + task.head;
    params.logsumexp[sequence * params.query_length + query] = logsumexp_of(task, query, state);
  }
  return bad;
}

template <int kWidth, bool kSplit>
__global__ void attend(const AttentionParams params) {
  // query (B,H,L,D), key (B,H,S,D), value (B,H,S,E) -> output (B,H,L,E), logsumexp (B,H,L)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kWidth <= 128) return;  // attend_on_hopper() takes them: no code for them here
#endif
  using Tile = AttentionTile<kWidth, kSplit>;
  const int tile_rows = Tile::Sizes::kWarpRows * (static_cast<int>(blockDim.x) / kWarp);
  const TileTask task = attention_task(params, tile_rows);
  Tile tile(task, params.operands);
  bool bad = load_task_queries(tile, params, task);
  tile.run();
  tile.join_sums();
  bad = bad || tile.saw_infinity();
#pragma unroll
  for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = task.first_query + tile.row_of(m, half);
      if (row >= params.query_length) continue;
      const SoftmaxState state = row < task.queries ? tile.state(m, half) : SoftmaxState();
      bad |= write_query<Tile::kOutputTiles>(
          params, task, row, state, [&](int n, int i) { return tile.output(m, half, n, i); });
    }
  }
  if (bad) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
