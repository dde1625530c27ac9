#pragma once

// The kernels of outer_products.h.
//
// Method: one block per 64 x 64 sums and part of the rows, 64 rows at a time on tensor cores
// (operand_tile.cuh), float32 operands cut in two bfloat16 each; the parts, cut by the number of
// rows alone, are added in order. Accumulation is float32. Any sizes and strides.

#include "cuda/operand_tile.cuh"
#include "cuda/outer_products.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"

namespace cluster_attention::cuda {

constexpr int kOuterMergeThreads = 256;

struct OuterLayout {
  int64_t position;
  int64_t left;
  int64_t right;
  int64_t bytes;
};

CA_HOST_DEVICE inline OuterLayout outer_layout() {
  SharedLayout parts;
  OuterLayout layout;
  layout.position = parts.add<int32_t>(kTile);
  layout.left = parts.add<OperandTile<true>>(1);
  layout.right = parts.add<OperandTile<true>>(1);
  layout.bytes = parts.bytes();
  return layout;
}

/// Rows of one part: whole tiles.
CA_HOST_DEVICE inline int64_t outer_part_rows(int64_t rows, int64_t parts) {
  return (rows + parts * kTile - 1) / (parts * kTile) * kTile;
}

__device__ inline Rows outer_rows(const OuterOperand& operand, int64_t group, int64_t first_row) {
  Rows rows;
  rows.data = operand.data;
  rows.offset = first_row * operand.row_stride + group * operand.group_stride;
  rows.stride = operand.row_stride;
  rows.storage = operand.storage;
  rows.round = operand.round;
  return rows;
}

__global__ void __launch_bounds__(kTileThreads)
    sum_outer_products(const OuterProductsParams params) {
  // left: (part of rows,64 columns), right: (part of rows,64 columns) -> part: (64,64)
  const int64_t right_tiles = (params.right.columns + kTile - 1) / kTile;
  const int64_t left_tiles = (params.left.columns + kTile - 1) / kTile;
  int64_t index = blockIdx.x;
  const int64_t first_right = index % right_tiles * kTile;
  index /= right_tiles;
  const int64_t first_left = index % left_tiles * kTile;
  index /= left_tiles;
  const int64_t group = index % params.groups;
  const int64_t part = index / params.groups;
  const OuterLayout layout = outer_layout();
  int32_t* position = dynamic_shared<int32_t>(layout.position);
  auto& left_tile = *dynamic_shared<OperandTile<true>>(layout.left);
  auto& right_tile = *dynamic_shared<OperandTile<true>>(layout.right);
  TileSums sums;
  clear(sums);
  const int64_t part_rows = outer_part_rows(params.rows, params.parts);
  const int64_t last = (part + 1) * part_rows;
  const int64_t end = last < params.rows ? last : params.rows;
  for (int64_t first = part * part_rows; first < end; first += kTile) {
    __syncthreads();  // the tiles of the rows before are used up
    if (threadIdx.x < kTile) {
      const int64_t row = first + threadIdx.x;
      const bool real = row < end && (params.weights == nullptr || params.weights[row] != 0.0f);
      position[threadIdx.x] = real ? static_cast<int32_t>(threadIdx.x) : kNoRow;
    }
    __syncthreads();
    load_tile(left_tile, outer_rows(params.left, group, first), position, first_left,
              params.left.columns);
    load_tile(right_tile, outer_rows(params.right, group, first), position, first_right,
              params.right.columns);
    __syncthreads();
    add_transposed(sums, nullptr, left_tile, right_tile, params.right.columns - first_right);
  }
  const TilePlace place;
  float* target = params.part + part * params.size();
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first_left + place.row(i / 2);
      const int64_t column = first_right + place.column(n, i % 2);
      if (row >= params.left.columns || column >= params.right.columns) continue;
      target[(group * params.left.columns + row) * params.right.columns + column] = sums[n][i];
    }
  }
}

/// One thread per element.
__global__ void __launch_bounds__(kOuterMergeThreads)
    merge_outer_products(const OuterProductsParams params) {
  // part: (parts,groups,left columns,right columns) -> sums: (groups,left columns,right columns)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kOuterMergeThreads + threadIdx.x;
  if (index >= params.size()) return;
  float total = 0.0f;
  for (int64_t part = 0; part < params.parts; ++part) {
    total += params.part[part * params.size() + index];
  }
  const float sum = params.sums[index] + params.scale * total;
  params.sums[index] = sum;
  if (!is_number(sum)) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
