#pragma once

// Long sums of products of float32 operands, without the bias of tensor cores. These cut, toward 0,
// what they add to a sum (Fasi et al. 2021): after n products it is too small by some n 2^-25 of
// itself, which passes the error of operands in two parts after a few hundred. So the products of a
// tile are summed by themselves, and the chains then added as floats, which are rounded to nearest.

#include "cuda/primitives/mma.cuh"

namespace cluster_attention::cuda {

/// A sum of few products.
struct Chain {
  FragmentD sums = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ void end_in(FragmentD& total) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += sums[i];
  }
  /// The total is multiplied by factor[0] in the first of the lane's rows, factor[1] in the other.
  __device__ void end_in(FragmentD& total, const float (&factor)[2]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] = fmaf(total[i], factor[i / 2], sums[i]);
  }
};

/// All tiles of D as A of the next products; split: split_pair or split_weights.
template <int kSteps, typename Split>
__device__ inline void split_tiles(const float (&weights)[2 * kSteps][4], FragmentA (&high)[kSteps],
                                   FragmentA (&low)[kSteps], Split split) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &weights[2 * k + i / 2][i % 2 * 2];
      split(pair[0], pair[1], high[k][i], low[k][i]);
    }
  }
}

/// A B of operands in two parts, A (16 kRows, 16 kSteps) and B (16 kSteps, 16 kPairs), of which
/// `columns` are wanted. load(k, n, part, b) fetches B (16,16) from row 16 k and column 16 n as
/// load_tiles_transposed() does; end(m, n, chain) takes the product of the rows from 16 m and the
/// columns from 8 n.
template <int kPairs, int kRows, int kSteps, typename Load, typename End>
__device__ inline void multiply_in_chains(const FragmentA (&high)[kRows][kSteps],
                                          const FragmentA (&low)[kRows][kSteps], int64_t columns,
                                          Load load, End end) {
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    if (16 * n >= columns) break;
    // Wide sums fill the registers: the compiler shall not have several chains under way.
    if constexpr (kPairs > 8) __syncwarp();
    Chain chains[kRows][2];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t b[2][4];
      load(k, n, 0, b[0]);
      load(k, n, 1, b[1]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const FragmentB high_b = {b[0][2 * side], b[0][2 * side + 1]};
          const FragmentB low_b = {b[1][2 * side], b[1][2 * side + 1]};
          mma_split_16x8x16(chains[m][side].sums, high[m][k], low[m][k], high_b, low_b);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) end(m, 2 * n + side, chains[m][side]);
    }
  }
}

}  // namespace cluster_attention::cuda
