#pragma once

// output = A B (+ output), A (rows,depth) and B (depth,columns) or their transposes, batched.
//
// Method: a block makes 128 x 64 outputs, 8 warps of 32 x 32, on tensor cores; 32 of the depth are
// in shared memory at a time, in the order in which they lie in memory: the fragments of transposed
// operands are transposed on their way to the registers.
// Precision: products of bfloat16, fp32 sums over 256 of the depth, which are added in order.
// float32 operands are cut in two bfloat16 (primitives/mma.cuh): relative error about 1e-5.
// Limits: any sizes.

#include "cuda/matmul.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/read_rows.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kMatmulThreads = 256;
constexpr int kMatmulRows = 128;
constexpr int kMatmulColumns = 64;
constexpr int kMatmulDepth = 32;
/// Depth that is summed before it is added to the total.
constexpr int64_t kMatmulDepthBlock = 256;
/// Padding of a row in shared memory: 16 bytes, an odd number of which is free of bank conflicts.
constexpr int kMatmulPad = 8;

/// A tile of an operand in shared memory: (outer,depth), or (depth,outer) when transposed.
template <int kOuter>
struct MatmulTile {
  static constexpr int kDepthStride = kMatmulDepth + kMatmulPad;
  static constexpr int kOuterStride = kOuter + kMatmulPad;
  static constexpr int kSize = kOuter * kDepthStride > kMatmulDepth* kOuterStride
                                   ? kOuter* kDepthStride
                                   : kMatmulDepth* kOuterStride;

  bfloat16 high[kSize];
  bfloat16 low[kSize];

  /// Fills the tile of element(outer, d), in the order of memory.
  template <bool kSplit, typename Element>
  __device__ void load(bool transposed, Element&& element) {
    for (int i = threadIdx.x; i < kOuter * kMatmulDepth; i += kMatmulThreads) {
      const int outer = transposed ? i % kOuter : i / kMatmulDepth;
      const int d = transposed ? i / kOuter : i % kMatmulDepth;
      const int place = transposed ? d * kOuterStride + outer : outer * kDepthStride + d;
      const float value = element(outer, d);
      if constexpr (kSplit) {
        split_bfloat16(value, high[place], low[place]);
      } else {
        high[place] = to_bfloat16(value);
      }
    }
  }

  /// Four tiles of 8 x 8, (outer,depth), of the one at `part`: in the order (0,0), (8,0), (0,8),
  /// (8,8), or with kDepthFirst (0,0), (0,8), (8,0), (8,8).
  template <bool kDepthFirst>
  __device__ void fragment(uint32_t (&r)[4], const bfloat16* part, bool transposed, int outer,
                           int d) const {
    const int lane = lane_index();
    const int row = lane % 8;
    const int first = lane / 8 % 2 * 8;
    const int second = lane / 16 * 8;
    outer += kDepthFirst ? second : first;
    d += kDepthFirst ? first : second;
    if (transposed) {
      load_tiles_transposed(r, part + (d + row) * kOuterStride + outer);
    } else {
      load_tiles(r, part + (outer + row) * kDepthStride + d);
    }
  }
};

struct alignas(16) MatmulStorage {
  MatmulTile<kMatmulRows> a;
  MatmulTile<kMatmulColumns> b;
};

struct MatmulParams {
  MatmulProblem problem;
  int64_t row_tiles;
  int64_t column_tiles;
  Flags* flags;
};

/// Sums of a warp: 2 x 4 tiles of 16 x 8.
using MatmulSums = FragmentD[2][4];

template <bool kSplit>
__device__ void multiply_matmul_tile(const MatmulStorage& tile, const MatmulProblem& problem,
                                     MatmulSums& sums) {
  const int row = warp_index() / 2 * 32;
  const int column = warp_index() % 2 * 32;
#pragma unroll
  for (int d = 0; d < kMatmulDepth; d += 16) {
    uint32_t high[2][4];
    uint32_t low[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      tile.a.template fragment<false>(high[i], tile.a.high, problem.transpose_a, row + 16 * i, d);
      if constexpr (kSplit) {
        tile.a.template fragment<false>(low[i], tile.a.low, problem.transpose_a, row + 16 * i, d);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b_high[4];
      uint32_t b_low[4];
      // B lies transposed in a tile of (columns,depth) unless the problem's is not.
      tile.b.template fragment<true>(b_high, tile.b.high, !problem.transpose_b, column + 16 * j, d);
      if constexpr (kSplit) {
        tile.b.template fragment<true>(b_low, tile.b.low, !problem.transpose_b, column + 16 * j, d);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const FragmentB high_b = {b_high[2 * half], b_high[2 * half + 1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          FragmentD& sum = sums[i][2 * j + half];
          if constexpr (kSplit) {
            const FragmentB low_b = {b_low[2 * half], b_low[2 * half + 1]};
            mma_split_16x8x16(sum, high[i], low[i], high_b, low_b);
          } else {
            mma_bf16_16x8x16(sum, high[i], high_b);
          }
        }
      }
    }
  }
}

__device__ inline void clear_sums(MatmulSums& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int t = 0; t < 4; ++t) sums[i][j][t] = 0.0f;
    }
  }
}

template <Read kRead>
__global__ void __launch_bounds__(kMatmulThreads) matmul_kernel(const MatmulParams params) {
  // block: A (128,depth) x B (depth,64) -> output (128,64)
  constexpr bool kSplit = kRead == Read::float32;
  const MatmulProblem& problem = params.problem;
  MatmulStorage& tile = *dynamic_shared<MatmulStorage>();
  const int64_t rows = problem.rows;
  const int64_t columns = problem.columns;
  const int64_t depth = problem.depth;
  const int64_t first_column = blockIdx.x % params.column_tiles * kMatmulColumns;
  const int64_t first_row = blockIdx.x / params.column_tiles % params.row_tiles * kMatmulRows;
  const int64_t batch = blockIdx.x / params.column_tiles / params.row_tiles;
  const int64_t a_base = batch * rows * depth;
  const int64_t b_base = batch * depth * columns;

  MatmulSums total;
  MatmulSums sums;
  clear_sums(total);
  clear_sums(sums);
  for (int64_t first = 0; first < depth; first += kMatmulDepth) {
    tile.a.template load<kSplit>(problem.transpose_a, [&](int outer, int d) {
      const int64_t row = first_row + outer;
      const int64_t k = first + d;
      if (row >= rows || k >= depth) return 0.0f;
      return read<kRead>(problem.a,
                         a_base + (problem.transpose_a ? k * rows + row : row * depth + k));
    });
    tile.b.template load<kSplit>(!problem.transpose_b, [&](int outer, int d) {
      const int64_t column = first_column + outer;
      const int64_t k = first + d;
      if (column >= columns || k >= depth) return 0.0f;
      return read<kRead>(
          problem.b, b_base + (problem.transpose_b ? column * depth + k : k * columns + column));
    });
    __syncthreads();
    multiply_matmul_tile<kSplit>(tile, problem, sums);
    __syncthreads();
    const int64_t next = first + kMatmulDepth;
    if (next % kMatmulDepthBlock != 0 && next < depth) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int t = 0; t < 4; ++t) total[i][j][t] += sums[i][j][t];
      }
    }
    clear_sums(sums);
  }

  const int64_t row = first_row + warp_index() / 2 * 32 + lane_index() / 4;
  const int64_t column = first_column + warp_index() % 2 * 32 + lane_index() % 4 * 2;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int64_t r = row + 16 * i + t / 2 * 8;
        const int64_t c = column + 8 * j + t % 2;
        if (r >= rows || c >= columns) continue;
        const int64_t place = (batch * rows + r) * columns + c;
        const float old = problem.accumulate ? read_stored<kRead>(problem.output, place) : 0.0f;
        const float value = problem.accumulate ? old + total[i][j][t] : total[i][j][t];
        finite = write<kRead>(problem.output, place, value) && finite;
      }
    }
  }
  if (!finite) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
