#pragma once

// sum[r][c] = sum over d, in order, of a[r][d] b[c][d]: the product tile of the operations whose
// labels must equal the CPU's. Every sum is one chain of fmaf in index order from 0, as in
// native/simd/tile_product.inl, so that the bits are the same; tensor cores add in another order.
//
// 256 threads, kFmaRows x kFmaColumns sums, kFmaDepth of d in shared memory at a time. Thread (y,
// x) of 16 x 16 has rows 8 y + i and columns x + 16 j: a ballot over column group j then holds 16
// columns of one row side by side.

#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

constexpr int kFmaThreads = 256;
constexpr int kFmaRows = 128;
constexpr int kFmaColumns = 64;
constexpr int kFmaDepth = 32;
/// Strides of the tiles in shared memory: rows keep 16 byte alignment, neither has bank conflicts.
constexpr int kFmaRowStride = kFmaRows + 4;
constexpr int kFmaColumnStride = kFmaColumns + 1;

struct alignas(16) FmaTileStorage {
  float a[kFmaDepth * kFmaRowStride];     // (depth,rows)
  float b[kFmaDepth * kFmaColumnStride];  // (depth,columns)
};

struct alignas(16) FourFloats {
  float value[4];
};

using FmaSums = float[8][4];

/// Fills the tile of `a` with element(row, d) for row < kFmaRows and d < depth. 4 rows x 8 columns
/// per warp and step: whole sectors of memory, no bank conflicts.
template <typename Element>
__device__ void load_fma_rows(FmaTileStorage& tile, int depth, Element&& element) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll 4
  for (int first_row = 0; first_row < kFmaRows; first_row += 32) {
    const int row = first_row + 4 * warp + lane / 8;
#pragma unroll 4
    for (int d = lane % 8; d < kFmaDepth; d += 8) {
      if (d < depth) tile.a[d * kFmaRowStride + row] = element(row, d);
    }
  }
}

/// The same for `b`: element(column, d); a warp reads 32 consecutive d of one column.
template <typename Element>
__device__ void load_fma_columns(FmaTileStorage& tile, int depth, Element&& element) {
  const int thread = static_cast<int>(threadIdx.x);
  const int d = thread % 32;
  if (d >= depth) return;
#pragma unroll 8
  for (int column = thread / 32; column < kFmaColumns; column += 8) {
    tile.b[d * kFmaColumnStride + column] = element(column, d);
  }
}

/// The same where neighbouring columns lie side by side in memory: a warp reads 32 columns of one
/// d.
template <typename Element>
__device__ void load_fma_columns_across(FmaTileStorage& tile, int depth, Element&& element) {
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread % kFmaColumns;
#pragma unroll 8
  for (int d = thread / kFmaColumns; d < kFmaDepth; d += kFmaThreads / kFmaColumns) {
    if (d < depth) tile.b[d * kFmaColumnStride + column] = element(column, d);
  }
}

__device__ inline void multiply_fma_tile(const FmaTileStorage& tile, int depth, FmaSums& sum) {
  const int y = static_cast<int>(threadIdx.x) / 16;
  const int x = static_cast<int>(threadIdx.x) % 16;
  for (int d = 0; d < depth; ++d) {
    const float* a = tile.a + d * kFmaRowStride + 8 * y;
    const float* b = tile.b + d * kFmaColumnStride + x;
    const FourFloats low = *reinterpret_cast<const FourFloats*>(a);
    const FourFloats high = *reinterpret_cast<const FourFloats*>(a + 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float column = b[16 * j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i][j] = fmaf(low.value[i], column, sum[i][j]);
        sum[i + 4][j] = fmaf(high.value[i], column, sum[i + 4][j]);
      }
    }
  }
}

/// The whole product of 128 rows and 64 columns over `dim`; all threads of the block call it.
/// `kAcross`: neighbouring columns of `b`, not of `d`, lie side by side.
template <bool kAcross = false, typename RowElement, typename ColumnElement>
__device__ void fma_product(FmaTileStorage& tile, int64_t dim, RowElement&& row_element,
                            ColumnElement&& column_element, FmaSums& sum) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0.0f;
  }
  for (int64_t first = 0; first < dim; first += kFmaDepth) {
    const int depth = static_cast<int>(dim - first < kFmaDepth ? dim - first : kFmaDepth);
    load_fma_rows(tile, depth, [&](int row, int d) { return row_element(row, first + d); });
    const auto column = [&](int c, int d) { return column_element(c, first + d); };
    if constexpr (kAcross) {
      load_fma_columns_across(tile, depth, column);
    } else {
      load_fma_columns(tile, depth, column);
    }
    __syncthreads();
    multiply_fma_tile(tile, depth, sum);
    __syncthreads();
  }
}

}  // namespace cluster_attention::cuda
