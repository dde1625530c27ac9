#pragma once

// The softmax down the columns of score tiles (operand_tile.cuh), over any number of tiles of rows:
// every thread keeps a maximum and a sum of its 16 columns for its own rows, without meeting
// others; the states are joined once, when the last row has been seen.

#include "cuda/operand_tile.cuh"

namespace cluster_attention::cuda {

/// What a block knows of the 64 inputs at hand, and what its warps tell each other.
struct ColumnData {
  int32_t row_position[kTile];  // centroids
  int32_t position[kTile];      // inputs; -1: padded, or of weight 0
  float weight[kTile];
  float scale[kTile];
  float maximum[kTile];
  float factor[kTile];  // first the sum, then w_i / sum
  double objective[kTile];
  float exchange_maximum[kTileWarps][kTile];
  float exchange_sum[kTileWarps][kTile];
};

/// Positions of a tile of centroids, by the first 64 threads.
__device__ inline void open_rows(int32_t* position, int64_t first, int64_t end) {
  if (threadIdx.x < kTile) {
    const int64_t row = first + threadIdx.x;
    position[threadIdx.x] = row < end ? static_cast<int32_t>(row) : kNoRow;
  }
}

/// What a thread has seen of its 16 columns, in its own rows.
struct ColumnState {
  static constexpr int kColumns = 2 * kTileColumns;
  float maximum[kColumns];
  float sum[kColumns];  // of 2^(exponent (score - maximum))

  __device__ ColumnState() {
    for (int c = 0; c < kColumns; ++c) {
      maximum[c] = -INFINITY;
      sum[c] = 0.0f;
    }
  }

  /// Rows [first_row, rows) of a tile.
  __device__ void add(const TileSums& scores, float exponent, int64_t first_row, int64_t rows) {
    const TilePlace place;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + place.row(half);
      if (row >= rows) continue;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float score = scores[c / 2][2 * half + c % 2];
        if (score > maximum[c]) {
          sum[c] = sum[c] * rescale(maximum[c], score, exponent) + 1.0f;
          maximum[c] = score;
        } else {
          sum[c] += exp2f((score - maximum[c]) * exponent);
        }
      }
    }
  }

  /// Joins the states of all threads into data.maximum and data.factor (the sum).
  __device__ void join(ColumnData& data, float exponent) {
    const TilePlace place;
    const int warp = warp_index();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = place.column(c / 2, c % 2);
      float joint = maximum[c];
      for (int mask = 4; mask < kWarp; mask *= 2) joint = fmaxf(joint, shuffle_xor(joint, mask));
      float total = sum[c] * rescale(maximum[c], joint, exponent);
      for (int mask = 4; mask < kWarp; mask *= 2) total += shuffle_xor(total, mask);
      if (place.group == 0) {
        data.exchange_maximum[warp][column] = joint;
        data.exchange_sum[warp][column] = total;
      }
    }
    __syncthreads();
    if (threadIdx.x < kTile) join_warps(data, exponent);
    __syncthreads();
  }

 private:
  __device__ static void join_warps(ColumnData& data, float exponent) {
    const int column = static_cast<int>(threadIdx.x);
    float joint = -INFINITY;
    for (int w = 0; w < kTileWarps; ++w) joint = fmaxf(joint, data.exchange_maximum[w][column]);
    float total = 0.0f;
    for (int w = 0; w < kTileWarps; ++w) {
      const float part = data.exchange_sum[w][column];
      if (part != 0.0f) total += part * rescale(data.exchange_maximum[w][column], joint, exponent);
    }
    data.maximum[column] = joint;
    data.factor[column] = total;
  }
};

}  // namespace cluster_attention::cuda
