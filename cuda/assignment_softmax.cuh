#pragma once

// The softmax of inputs over centroids in the registers of score tiles whose rows are inputs and
// whose columns are centroids (operand_tile.cuh): a thread keeps what it has seen of its two rows,
// and the four lanes of a row meet once, when the last centroid has been seen.

#include "cuda/assignment_params.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

/// 64 inputs at hand.
struct InputTile {
  int32_t position[kTile];  // kNoRow: padded, or of weight 0
  float weight[kTile];
  float scale[kTile];
};

/// Positions, weights and scales of inputs [first, first + 64), by the first 64 threads.
__device__ inline void open_inputs(InputTile& data, const AssignmentParams& params, int64_t batch,
                                   int64_t first, int64_t end) {
  if (threadIdx.x >= kTile) return;
  const int64_t input = first + threadIdx.x;
  const float weight = input < end ? params.weight(batch, input) : 0.0f;
  data.weight[threadIdx.x] = weight;
  data.position[threadIdx.x] = weight != 0.0f ? static_cast<int32_t>(input) : kNoRow;
  data.scale[threadIdx.x] = params.column_scale != nullptr && input < end
                                ? params.column_scale[batch * params.inputs + input]
                                : 1.0f;
}

/// 64 centroids at hand.
struct CentroidTile {
  int32_t position[kTile];
  float bias[kTile];        // sign row_bias; -Inf past the last centroid, which has no weight then
  float label_bias[kTile];  // only of assignment_statistics
};

/// Positions and biases of centroids [first, first + 64), by the first 64 threads. True if a bias
/// is not finite.
__device__ inline bool open_centroids(CentroidTile& data, const AssignmentParams& params,
                                      int64_t sequence, int64_t first, int64_t end) {
  if (threadIdx.x >= kTile) return false;
  const int64_t centroid = first + threadIdx.x;
  const int64_t place = sequence * params.centroids + centroid;
  const bool real = centroid < end;
  const float bias = real && params.row_bias != nullptr ? params.row_bias[place] : 0.0f;
  data.position[threadIdx.x] = real ? static_cast<int32_t>(centroid) : kNoRow;
  data.bias[threadIdx.x] = real ? params.sign * bias : -INFINITY;
  data.label_bias[threadIdx.x] =
      real && params.label_bias != nullptr ? params.label_bias[place] : 0.0f;
  return !is_number(bias);
}

/// Products become scores, -Inf past the last centroid. True if one that counts is not finite.
__device__ inline bool finish_input_scores(TileSums& scores, const InputTile& inputs,
                                           const CentroidTile& centroids, float sign) {
  const TilePlace place;
  const float scale[2] = {sign * inputs.scale[place.row(0)], sign * inputs.scale[place.row(1)]};
  bool finite[2] = {true, true};
#pragma unroll
  for (int n = 0; n < kTileColumns; ++n) {
    const float2 bias = *reinterpret_cast<const float2*>(centroids.bias + place.column(n, 0));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& left = scores[n][2 * half];
      float& right = scores[n][2 * half + 1];
      finite[half] = finite[half] && is_number(left) && is_number(right);
      left = fmaf(left, scale[half], bias.x);
      right = fmaf(right, scale[half], bias.y);
    }
  }
  return (!finite[0] && inputs.position[place.row(0)] >= 0) ||
         (!finite[1] && inputs.position[place.row(1)] >= 0);
}

/// The best centroid of a thread's two rows: of equal ones the first.
struct BestCentroid {
  float rank[2] = {-INFINITY, -INFINITY};
  int32_t centroid[2] = {0, 0};

  /// Centroids come in ascending order.
  __device__ void add(const TileSums& scores, const CentroidTile& centroids, float label_scale,
                      int64_t first) {
    const TilePlace place;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = place.column(n, side);
        const float bias = centroids.label_bias[column];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          take(half, scores[n][2 * half + side] * label_scale + bias,
               static_cast<int32_t>(first) + column);
        }
      }
    }
  }

  /// Over the four lanes of each row.
  __device__ void join() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        take(half, shuffle_xor(rank[half], mask), shuffle_xor(centroid[half], mask));
      }
    }
  }

 private:
  __device__ void take(int half, float other, int32_t other_centroid) {
    if (other > rank[half] || (other == rank[half] && other_centroid < centroid[half])) {
      rank[half] = other;
      centroid[half] = other_centroid;
    }
  }
};

/// Maximum and sum of the exponentials of a thread's two rows. The exponent is not 0: what is past
/// the last centroid, with its score of -Inf, then counts as 0.
struct InputSums {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // of 2^(exponent (score - maximum))

  __device__ void add(const TileSums& scores, float exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float largest = fmaxf(maximum[half], largest_of(scores, half));
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
        total += exp2_fast((scores[n][2 * half] - largest) * exponent);
        total += exp2_fast((scores[n][2 * half + 1] - largest) * exponent);
      }
      if (largest == -INFINITY) {  // only NaN, or columns past the last centroid so far
        if (has_nan(scores, half)) sum[half] = nanf("");
        continue;
      }
      sum[half] = sum[half] * rescale(maximum[half], largest, exponent) + total;
      maximum[half] = largest;
    }
  }

  /// Over the four lanes of each row.
  __device__ void join(float exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float joint = warp_max(maximum[half], 4);
      sum[half] = warp_sum(sum[half] * rescale(maximum[half], joint, exponent), 4);
      maximum[half] = joint;
    }
  }

  /// add() and join() for rows whose centroids are all in one tile; scores become exponentials.
  __device__ void exponentiate(TileSums& scores, float exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[half] = warp_max(largest_of(scores, half), 4);
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = scores[n][2 * half + side];
          score = exp2_fast((score - maximum[half]) * exponent);
          total += score;
        }
      }
      sum[half] = warp_sum(total, 4);
    }
  }

 private:
  __device__ static bool has_nan(const TileSums& scores, int half) {
    bool found = false;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float score = scores[n][2 * half + side];
        found = found || score != score;
      }
    }
    return found;
  }

  __device__ static float largest_of(const TileSums& scores, int half) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    return largest;
  }
};

/// An exponent of 0 as the least number above it, whose product with a difference of scores is as
/// good as 0 but for that of -Inf.
__device__ inline float positive(float exponent) { return fmaxf(exponent, 0x1p-149f); }

/// Natural log of sum_j exp of the scores, given their maximum and the sum relative to it.
__device__ inline double log_sum_exp(float maximum, float exponent, float sum) {
  return (static_cast<double>(maximum) * exponent + log2(static_cast<double>(sum))) * kLn2;
}

/// Labels of a thread's two rows, of which it is the first lane, and their terms of the objective.
__device__ inline double close_inputs(const InputTile& data, const AssignmentParams& params,
                                      int64_t sequence, int64_t first, int64_t end,
                                      const InputSums& sums, const BestCentroid& best,
                                      bool is_single) {
  const TilePlace place;
  double objective = 0.0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (place.pair != 0) continue;
    const int row = place.row(half);
    const bool active = data.position[row] >= 0;
    if (params.labels != nullptr && first + row < end) {
      params.labels[sequence * params.inputs + first + row] =
          active ? (is_single ? 0 : best.centroid[half]) : -1;
    }
    if (params.objective == nullptr || !active) continue;
    objective +=
        data.weight[row] * log_sum_exp(sums.maximum[half], params.exponent, sums.sum[half]);
  }
  return objective;
}

/// Sum of the values of the first lanes of all rows in the order of these, in thread 0.
/// `exchange`: 8 values per warp.
__device__ inline double sum_inputs(double* exchange, double value) {
  const TilePlace place;
  if (place.pair == 0) exchange[8 * warp_index() + place.group] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 8 * kTileWarps; ++i) total += exchange[i];
  }
  return total;
}

}  // namespace cluster_attention::cuda
