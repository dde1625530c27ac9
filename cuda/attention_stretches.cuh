#pragma once

// §1 exact attention of few queries: what attention.cuh computes, by blocks that share the keys of
// a sequence out, so that a single query keeps a whole GPU busy.
//
// Method: flash decoding (Dao et al., 2023). A block takes all queries of a sequence and one
// stretch of its keys through AttentionTile; a warp for each query then joins the states and the
// outputs of the stretches, in order. Stretches are cut by the numbers of keys and queries alone.
// Precision: as in attention_tile.cuh. Limits: D, E <= kWidth; at most kFewQueries queries,
// kMostStretches stretches.

#include "cuda/attention.cuh"
#include "cuda/clustered_pass.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int64_t kFewQueries = 128;
/// Of fewer keys a block of its own is as fast as the second launch.
constexpr int64_t kManyKeys = 1024;
/// Keys of a stretch per query: what a stretch leaves for the second launch is then at most an
/// eighth of the keys and values that it reads (in bfloat16), however many sequences there are.
constexpr int64_t kKeysPerQuery = 8;
/// Where fewer stretches would share the keys, a block takes them all.
constexpr int64_t kFewestStretches = 4;

inline int64_t query_stretch(int64_t queries, int64_t keys) {
  const int64_t shortest = round_up(kKeysPerQuery * queries, 64);
  const int64_t usual = pass_stretch(keys);
  return usual < shortest ? shortest : usual;
}

struct StretchParams {
  AttentionParams attention;
  float* outputs;        // (B,H,L,stretches,columns of the value operand), relative to the state
  SoftmaxState* states;  // (B,H,L,stretches)
  int64_t sequences;
  int64_t stretches;
  int64_t stretch;  // keys in one
};

/// All queries are in one tile.
template <int kWidth, bool kSplit>
using StretchTile = AttentionTile<kWidth, kSplit, 1>;

template <int kWidth, bool kSplit>
__global__ void attend_stretch(const StretchParams params) {
  // query (B,H,L,D), key (B,H,S,D), value (B,H,S,E) -> outputs, states of (sequence, stretch)
  using Tile = StretchTile<kWidth, kSplit>;
  const AttentionParams& attention = params.attention;
  const int64_t part = blockIdx.x % params.stretches;
  const int64_t sequence = blockIdx.x / params.stretches;
  TileTask task = attention_task(attention, sequence, 0, kFewQueries);
  task.first_key = part * params.stretch;
  if (task.first_key >= task.end_key) return;  // nobody asks for it
  const int64_t end = task.first_key + params.stretch;
  if (end < task.end_key) task.end_key = end;
  Tile tile(task, attention.operands);
  bool bad = load_task_queries(tile, attention, task);
  tile.run();
  tile.join_sums();
  bad = bad || tile.saw_infinity();
  if (bad) mark_non_finite(attention.flags);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile.row_of(0, half);
    if (row >= task.queries) continue;
    const int64_t place = (sequence * attention.query_length + row) * params.stretches + part;
    if (lane_index() % 4 == 0) params.states[place] = tile.state(0, half);
    const int columns = attention.operands.value.columns;
    float* output = params.outputs + place * columns;
#pragma unroll
    for (int n = 0; n < Tile::kOutputTiles; ++n) {
      if (n * 8 >= columns) continue;
      *reinterpret_cast<float2*>(output + Tile::column(n)) =
          make_float2(tile.output(0, half, n, 0), tile.output(0, half, n, 1));
    }
  }
}

constexpr int kStretchJoinWarps = 4;

template <int kWidth>
__global__ void __launch_bounds__(kStretchJoinWarps* kWarp)
    join_queries(const StretchParams params) {
  // outputs, states of the stretches -> output (B,H,L,E), logsumexp (B,H,L); a warp for each query
  constexpr int kColumns = kWidth / kWarp;  // of a lane
  const AttentionParams& attention = params.attention;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kStretchJoinWarps + warp_index();
  const int64_t sequence = row / attention.query_length;
  const int64_t query = row % attention.query_length;
  if (sequence >= params.sequences) return;
  const TileTask task = attention_task(attention, sequence, 0, kFewQueries);
  const int stretches =
      query < task.queries ? static_cast<int>(divide_up(task.end_key, params.stretch)) : 0;

  const SoftmaxState* states = params.states + row * params.stretches;
  SoftmaxState mine[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i * kWarp + lane_index() < stretches) mine[i] = states[i * kWarp + lane_index()];
  }
  SoftmaxState joint;
  joint.maximum = warp_reduce(max_or_nan(mine[0].maximum, mine[1].maximum),
                              [](float a, float b) { return max_or_nan(a, b); });
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    factor[i] = SoftmaxState::shift(mine[i].maximum, joint.maximum);
    joint.sum = fmaf(factor[i], mine[i].sum, joint.sum);
  }
  joint.sum = warp_sum(joint.sum);

  const int columns = attention.operands.value.columns;
  const float* outputs = params.outputs + row * params.stretches * columns;
  float sums[kColumns] = {};
#pragma unroll 4
  for (int part = 0; part < stretches; ++part) {
    const float weight = shuffle(part < kWarp ? factor[0] : factor[1], part % kWarp);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kWarp + lane_index();
      if (column < columns) sums[c] = fmaf(weight, outputs[part * columns + column], sums[c]);
    }
  }
  const float normalizer = joint.normalizer();
  const float none = without_weights(task, query);
  const int64_t output = attention.output.offset(task.batch, task.head, query);
  bool bad = false;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int column = c * kWarp + lane_index();
    if (column >= attention.value_dim) continue;
    const float value = joint.sum == 0.0f ? none : sums[c] * normalizer;
    bad = bad || !(fabsf(value) < HUGE_VALF);
    attention.output.store(output + column, value);
  }
  if (bad) mark_non_finite(attention.flags);
  if (attention.logsumexp != nullptr && lane_index() == 0) {
    attention.logsumexp[row] = logsumexp_of(task, query, joint);
  }
}

}  // namespace cluster_attention::cuda
