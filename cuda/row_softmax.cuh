#pragma once

// The online softmax along the rows of score tiles (operand_tile.cuh), for kernels whose rows
// attend to many tiles of columns: a running maximum and sum per row, and an output in the
// registers that is scaled like the sum.

#include "cuda/operand_tile.cuh"

namespace cluster_attention::cuda {

/// Tiles of 64 value columns that a block sums at once.
constexpr int kRowValueTiles = 2;
using RowOutput = TileSums[kRowValueTiles];

struct RowSoftmax {
  float maximum[2] = {-INFINITY, -INFINITY};  // of the rows place.row(0) and place.row(1)
  float sum[2] = {0.0f, 0.0f};                // of this thread's columns; total() joins them

  /// Scores become weight(column) * 2^(exponent (score - maximum)); a weight of 0 leaves a column
  /// out, whatever its score. The output is brought to the new maximum.
  template <int kTiles, typename Weight>
  __device__ void weigh(TileSums& scores, TileSums (&output)[kTiles], float exponent,
                        const Weight& weight) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float joint = maximum[half];
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if (weight(place.column(n, side)) != 0.0f) {
            joint = fmaxf(joint, scores[n][2 * half + side]);
          }
        }
      }
      joint = warp_reduce(
          joint, [](float a, float b) { return fmaxf(a, b); }, 4);
      const float factor = rescale(maximum[half], joint, exponent);
      maximum[half] = joint;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = scores[n][2 * half + side];
          const float multiplier = weight(place.column(n, side));
          score = multiplier != 0.0f ? multiplier * exp2_fast((score - joint) * exponent) : 0.0f;
          sum[half] += score;
#pragma unroll
          for (int t = 0; t < kTiles; ++t) output[t][n][2 * half + side] *= factor;
        }
      }
    }
  }

  /// The sum over all columns of a row.
  __device__ float total(int half) const { return warp_sum(sum[half], 4); }
};

}  // namespace cluster_attention::cuda
