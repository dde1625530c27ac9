#pragma once

// What the rows that a block owns gain from all rows that they meet: dq (owned by queries), or dk
// and dv (owned by keys), see gradient_tile.cuh.

#include "cuda/gradient_tile.cuh"
#include "cuda/primitives/exp2.cuh"

namespace cluster_attention::cuda {

/// 2^x of a weight's exponent: weights are at most 1, what is above it is rounding. NaN stays NaN.
__device__ inline float weight_of(float exponent) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("min.NaN.f32 %0, %0, 0f00000000;" : "+f"(exponent));
#else
  exponent = exponent > 0.0f ? 0.0f : exponent;
#endif
  return exp2_fast(exponent);
}

struct alignas(8) TwoFloats {
  float value[2];
};

template <int kWidth, bool kSplit, bool kOwnsKeys>
class GradientSums {
 public:
  using Tile = GradientTile<kWidth, kSplit>;
  using Scores = typename Tile::Scores;
  static constexpr int kRowTiles = Tile::kRowTiles;

  __device__ explicit GradientSums(const GradientTask& task) : task_(task) {
    clear(first_);
    if (kOwnsKeys) clear(second_);
  }

  /// Meets all rows. The results are first() and second().
  __device__ void run() {
    Tile tile(task_, kOwnsKeys);
    if (!kOwnsKeys) load_row_terms();
    tile.run([&](int buffer, int64_t first) {
      if (tile.template is_hidden<kOwnsKeys>(first)) return;
      Scores weights;
      tile.multiply(0, buffer, weights);
      weigh(tile, buffer, first, weights);
      if (kOwnsKeys && task_.wants_second) tile.accumulate(1, buffer, weights, second_);
      if (!task_.wants_first) return;
      Scores change;
      tile.multiply(1, buffer, change);
      differentiate(tile, buffer, weights, change);
      tile.accumulate(0, buffer, change, first_);
    });
  }

  /// write(own row relative to the first, column, dz x first, p x second) of every element of the
  /// block's slice; the last one is 0 for queries.
  template <typename Write>
  __device__ void for_each(Write write) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Tile::row_of(m, half);
#pragma unroll
        for (int n = 0; n < Tile::kSumTiles; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            const int column = task_.slice * Tile::Sizes::kSlice + Tile::column_of(n, i);
            write(row, column, first_[m][n][i], kOwnsKeys ? second_[m][n][i] : 0.0f);
          }
        }
      }
    }
  }

 private:
  __device__ static void clear(typename Tile::Sums& sums) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kSumTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }

  __device__ void load_row_terms() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t place = task_.own.begin + Tile::row_of(m, half);
        const bool real = place < task_.own.end;
        const int64_t row = real ? task_.own.row(place) : 0;
        row_maximum_[m][half] = real ? task_.maximum[row] : HUGE_VALF;
        row_offset_[m][half] = real ? task_.offset[row] : 0.0f;
      }
    }
  }

  /// Whether all pairs of a row tile and a tile of met rows take part. Met queries past the end
  /// have weights of 0 by their terms.
  __device__ bool is_whole(int m, int64_t first) const {
    const int64_t own =
        task_.own.begin + warp_index() * Tile::Sizes::kWarpRows + m * kGradientTileRows;
    if (kOwnsKeys) {
      return !task_.causal || own + kGradientTileRows - 1 <= first + task_.causal_offset;
    }
    const int64_t last = first + Tile::kColumns - 1;
    return last < task_.met.end && (!task_.causal || last <= own + task_.causal_offset);
  }
  __device__ bool takes_part(int64_t own, int64_t met) const {
    if (kOwnsKeys) return own <= met + task_.causal_offset;
    return met < task_.met.end && (!task_.causal || met <= own + task_.causal_offset);
  }

  /// Terms of the two met rows of this thread in tile n.
  __device__ static TwoFloats met_pair(const float* terms, int n) {
    return *reinterpret_cast<const TwoFloats*>(terms + Tile::column_of(n, 0));
  }

  /// scores -> p
  __device__ void weigh(const Tile& tile, int buffer, int64_t first, Scores& scores) const {
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      TwoFloats met = {};
      if (kOwnsKeys) met = met_pair(tile.met_maximum(buffer), n);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float maximum = kOwnsKeys ? met.value[i % 2] : row_maximum_[m][i / 2];
          scores[m][n][i] = weight_of(fmaf(scores[m][n][i], task_.scale_log2, -maximum));
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if (is_whole(m, first)) continue;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t own = task_.own.begin + Tile::row_of(m, i / 2);
          if (!takes_part(own, first + Tile::column_of(n, i))) scores[m][n][i] = 0.0f;
        }
      }
    }
  }

  /// g·v -> dz
  __device__ void differentiate(const Tile& tile, int buffer, const Scores& weights,
                                Scores& change) const {
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
      TwoFloats met = {};
      if (kOwnsKeys) met = met_pair(tile.met_offset(buffer), n);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float offset = kOwnsKeys ? met.value[i % 2] : row_offset_[m][i / 2];
          change[m][n][i] = weights[m][n][i] * (change[m][n][i] - offset);
        }
      }
    }
  }

  const GradientTask& task_;
  float row_maximum_[kRowTiles][2];
  float row_offset_[kRowTiles][2];
  typename Tile::Sums first_;
  typename Tile::Sums second_;
};

}  // namespace cluster_attention::cuda
