#pragma once

// dq, dk and dv of rows that attend to keys, in one launch: first come the blocks that own keys and
// meet all rows, then those that own rows and meet the keys, or a part of them. With the causal
// mask the blocks with the most pairs start first.
//
// Method, precision, limits: gradient_tile.cuh. A NaN reaches, with the causal mask, also hidden
// pairs of the same warp and tile (at most 62 rows away): 0 times NaN is NaN.

#include "cuda/gradient_pass.h"
#include "cuda/gradient_sums.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/stored_rows.cuh"
#include "native/core/shape.h"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

constexpr int kGradientWarps = 4;

struct GradientPassParams {
  GradientPass pass;
  int64_t key_blocks;  // the others own rows
  int64_t key_tiles;   // of a sequence
  int64_t row_tiles;
  Flags* flags;
};

/// The block's own place: slice and tile of a sequence, and its lengths.
struct GradientPlace {
  int64_t sequence;
  int64_t tile;
  int64_t part;
  int64_t rows;  // real ones
  int64_t keys;
  int slice;
};

__device__ inline GradientPlace gradient_place(const GradientPass& pass, int64_t block, int slices,
                                               int64_t parts, int64_t tiles) {
  GradientPlace place;
  place.slice = static_cast<int>(block % slices);
  place.part = block / slices % parts;
  place.tile = block / slices / parts % tiles;
  place.sequence = block / slices / parts / tiles;
  const int64_t batch = place.sequence / pass.heads;
  const bool any = real_length(pass.member_lengths, batch, 1) > 0;
  place.rows = any ? real_length(pass.row_lengths, batch, pass.rows) : 0;
  place.keys = real_length(pass.key_lengths, batch, pass.keys);
  return place;
}

__device__ inline GradientTask gradient_task(const GradientPass& pass, const GradientPlace& place) {
  GradientTask task;
  task.batch = place.sequence / pass.heads;
  task.head = place.sequence % pass.heads;
  task.maximum = pass.maximum + place.sequence * pass.rows;
  task.offset = pass.offset + place.sequence * pass.rows;
  task.scale_log2 = pass.scale * kLog2E;
  task.causal = pass.causal;
  task.causal_offset = place.keys - place.rows;
  task.slice = place.slice;
  return task;
}

template <int kWidth, bool kSplit>
__device__ void pass_keys(const GradientPassParams& params, int64_t block) {
  // keys, values (rows, D|E) x all queries and gradients -> dk, dv (rows, D|E)
  using Sizes = GradientSizes<kWidth, kSplit>;
  const GradientPass& pass = params.pass;
  const GradientPlace place = gradient_place(pass, block, Sizes::kSlices, 1, params.key_tiles);
  GradientTask task = gradient_task(pass, place);
  const int64_t first_column = int64_t{Sizes::kSlice} * place.slice;
  task.wants_first = pass.key.data != nullptr && first_column < pass.head_dim;
  task.wants_second = pass.value.data != nullptr && first_column < pass.value_dim;
  const int64_t begin = place.tile * Sizes::kWarpRows * (static_cast<int64_t>(blockDim.x) / kWarp);
  task.own = {&pass.key_operands, nullptr, begin, place.keys};
  task.met = {&pass.row_operands, nullptr, 0, begin < place.keys ? place.rows : 0};
  if (pass.causal && begin > task.causal_offset) {
    // Rows before this one see none of the keys; tiles begin where they begin for all.
    task.met.begin = (begin - task.causal_offset) / Sizes::kColumns * Sizes::kColumns;
  }
  GradientSums<kWidth, kSplit, true> sums(task);
  sums.run();
  bool bad = false;
  const int64_t key_rows = pass.key.offset(task.batch, task.head, begin);
  const int64_t value_rows = pass.value.offset(task.batch, task.head, begin);
  sums.for_each([&](int row, int column, float change, float weighted) {
    if (begin + row >= pass.keys) return;
    const bool real = begin + row < place.keys;
    if (task.wants_first && column < pass.head_dim) {
      const float value = real ? change * pass.scale : 0.0f;
      bad = bad || !(fabsf(value) < HUGE_VALF);
      pass.key.store(key_rows + row * pass.key.row_stride + column, value);
    }
    if (task.wants_second && column < pass.value_dim) {
      const float value = real ? weighted : 0.0f;
      bad = bad || !(fabsf(value) < HUGE_VALF);
      pass.value.store(value_rows + row * pass.value.row_stride + column, value);
    }
  });
  if (bad) mark_non_finite(params.flags);
}

template <int kWidth, bool kSplit>
__device__ void pass_rows(const GradientPassParams& params, int64_t block) {
  // queries, gradients (rows, D|E) x keys and values of a part -> dq (rows, D)
  using Sizes = GradientSizes<kWidth, kSplit>;
  const GradientPass& pass = params.pass;
  const GradientPlace place =
      gradient_place(pass, block, Sizes::kSlices, pass.parts, params.row_tiles);
  GradientTask task = gradient_task(pass, place);
  if (int64_t{Sizes::kSlice} * place.slice >= pass.head_dim) return;
  const int64_t tile_rows = Sizes::kWarpRows * (static_cast<int64_t>(blockDim.x) / kWarp);
  const int64_t begin = (params.row_tiles - 1 - place.tile) * tile_rows;
  task.own = {&pass.row_operands, nullptr, begin, place.rows};
  const int64_t first_key = pass.parts > 1 ? place.part * pass.stretch : 0;
  int64_t end_key = begin < place.rows ? place.keys : 0;
  if (pass.parts > 1 && first_key + pass.stretch < end_key) end_key = first_key + pass.stretch;
  if (pass.causal) {
    const int64_t last = begin + tile_rows < place.rows ? begin + tile_rows : place.rows;
    if (last + task.causal_offset < end_key) end_key = last + task.causal_offset;
  }
  task.met = {&pass.key_operands, nullptr, first_key, end_key};
  if (pass.partial != nullptr && first_key >= place.keys) return;
  GradientSums<kWidth, kSplit, false> sums(task);
  sums.run();
  bool bad = false;
  const int64_t rows = pass.query.offset(task.batch, task.head, begin);
  float* partial = pass.partial;
  if (partial != nullptr) {
    partial += ((place.sequence * pass.parts + place.part) * pass.rows + begin) * pass.head_dim;
  }
  sums.for_each([&](int row, int column, float change, float) {
    if (begin + row >= pass.rows || column >= pass.head_dim) return;
    if (partial != nullptr) {
      partial[row * pass.head_dim + column] = change;
      return;
    }
    const float value = begin + row < place.rows ? change * pass.scale : 0.0f;
    bad = bad || !(fabsf(value) < HUGE_VALF);
    pass.query.store(rows + row * pass.query.row_stride + column, value);
  });
  if (bad) mark_non_finite(params.flags);
}

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kGradientWarps* kWarp)
    pass_gradients(const GradientPassParams params) {
  const int64_t block = blockIdx.x;
  if (block < params.key_blocks) {
    pass_keys<kWidth, kSplit>(params, block);
  } else {
    pass_rows<kWidth, kSplit>(params, block - params.key_blocks);
  }
}

}  // namespace cluster_attention::cuda
