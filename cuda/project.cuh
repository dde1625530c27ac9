#pragma once

// The kernel of project.h.
//
// Method: one block per 64 x 64 outputs, 64 of the depth at a time (operand_tile.cuh), float32
// operands cut in two bfloat16 each. Accumulation is float32. Any sizes and strides.

#include "cuda/operand_tile.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/project.h"

namespace cluster_attention::cuda {

struct ProjectionLayout {
  int64_t row_position;
  int64_t column_position;
  int64_t rows;
  int64_t columns;
  int64_t bytes;
};

CA_HOST_DEVICE inline ProjectionLayout projection_layout() {
  SharedLayout parts;
  ProjectionLayout layout;
  layout.row_position = parts.add<int32_t>(kTile);
  layout.column_position = parts.add<int32_t>(kTile);
  layout.rows = parts.add<OperandTile<true>>(1);
  layout.columns = parts.add<OperandTile<true>>(1);
  layout.bytes = parts.bytes();
  return layout;
}

/// Places of up to 64 rows from the first one on, by the first 64 threads.
__device__ inline void open_range(int32_t* position, int64_t count) {
  if (threadIdx.x < kTile) {
    position[threadIdx.x] = threadIdx.x < count ? static_cast<int32_t>(threadIdx.x) : kNoRow;
  }
}

__global__ void __launch_bounds__(kTileThreads) project_rows(const ProjectionParams params) {
  // input: (64 of rows,depth), weight: (64 of columns,depth) -> output: (64 of rows,64 of columns)
  const int64_t column_tiles = (params.columns + kTile - 1) / kTile;
  const int64_t group = blockIdx.x / column_tiles % params.groups;
  const int64_t first_row = blockIdx.x / column_tiles / params.groups * kTile;
  const int64_t first_column = blockIdx.x % column_tiles * kTile;
  const ProjectionLayout layout = projection_layout();
  int32_t* row_position = dynamic_shared<int32_t>(layout.row_position);
  int32_t* column_position = dynamic_shared<int32_t>(layout.column_position);
  Rows input;
  input.data = params.input;
  input.offset = first_row * params.input_row_stride + group * params.input_group_stride;
  input.stride = params.input_row_stride;
  input.storage = params.input_storage;
  input.round = params.round_input;
  Rows weight;
  weight.data = params.weight;
  weight.offset = group * params.weight_group_stride + first_column * params.weight_column_stride;
  weight.stride = params.weight_column_stride;
  weight.element_stride = params.weight_element_stride;
  weight.round = params.round_weight;
  open_range(row_position, params.rows - first_row);
  open_range(column_position, params.columns - first_column);
  __syncthreads();
  TileSums sums;
  clear(sums);
  multiply_rows(sums, dynamic_shared<OperandTile<true>>(layout.rows), 1, true, input, row_position,
                *dynamic_shared<OperandTile<true>>(layout.columns), weight, column_position,
                params.depth);

  const TilePlace place;
  bool bad = false;
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first_row + place.row(i / 2);
      const int64_t column = first_column + place.column(n, i % 2);
      if (row >= params.rows || column >= params.columns) continue;
      const int64_t index =
          row * params.output_row_stride + group * params.output_group_stride + column;
      float value = params.step * sums[n][i];
      if (params.base != nullptr) value += params.base[index];
      bad |= !is_number(value);
      params.output[index] = value;
      if (params.stored != nullptr) store_element(params.stored, params.storage, index, value);
    }
  }
  if (bad && params.watch) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
