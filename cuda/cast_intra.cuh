#pragma once

// Rows of R_intra (cast_clusters.cuh), which cast_combination.cuh reads by the same lanes: a lane
// has the columns 8 n + pair and 8 n + pair + 1 of each tile of 64 (operand_tile.cuh). Where tiles
// are whole, what a lane has of one lies side by side in chunks of 16 bytes. Values are stored as
// the operands of products are: without a split, rounded to bfloat16.

#include "cuda/cast_params.cuh"

namespace cluster_attention::cuda {

/// What a lane has of 64 columns of a row, as it is stored: on its way until values are asked for.
template <bool kSplit>
struct LaneRow {
  static constexpr int kWords = kSplit ? 2 * kTileColumns : kTileColumns;
  uint32_t words[kWords];

  /// Of column place.column(i / 2, i % 2).
  __device__ float value(int i) const {
    if constexpr (kSplit) return __uint_as_float(words[i]);
    return i % 2 == 0 ? low_of(words[i / 2]) : high_of(words[i / 2]);
  }
};

template <bool kSplit>
class IntraRow {
 public:
  static constexpr Storage kStorage = kSplit ? Storage::float32 : Storage::bfloat16;

  /// Columns [first, first + 64) of a row of list (sequence, cluster); the one after the last slot
  /// is the cluster's summary.
  __device__ IntraRow(const CastParams& params, int64_t list, int64_t slot, int64_t first)
      : data_(params.intra),
        at_((list * (params.cluster_size + 1) + slot) * params.value_dim + first),
        width_(params.value_dim - first),
        whole_(params.value_dim % kTile == 0) {}

  /// Of one of a thread's two rows.
  __device__ void store(const TileSums& sums, int half) const {
    if (!whole_) {
      write_stored_row(data_, kStorage, at_, width_, sums, half);
      return;
    }
    const int left = 2 * half;
    const int right = 2 * half + 1;
    if constexpr (kSplit) {
#pragma unroll
      for (int n = 0; n < kTileColumns; n += 2) {
        *chunk<float4>(data_ + at_, n / 2) =
            make_float4(sums[n][left], sums[n][right], sums[n + 1][left], sums[n + 1][right]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < kTileColumns; n += 4) {
        *chunk<uint4>(reinterpret_cast<bfloat16*>(data_) + at_, n / 4) =
            make_uint4(pack_bfloat16(sums[n][left], sums[n][right]),
                       pack_bfloat16(sums[n + 1][left], sums[n + 1][right]),
                       pack_bfloat16(sums[n + 2][left], sums[n + 2][right]),
                       pack_bfloat16(sums[n + 3][left], sums[n + 3][right]));
      }
    }
  }

  /// Of one column.
  __device__ void store(int column, float value) const {
    constexpr int kChunk = kSplit ? 4 : 8;
    const int i = column / 8 * 2 + column % 2;  // of the lane's values
    const int lane = column % 8 / 2;
    const int place = (4 * (i / kChunk) + lane) * kChunk + i % kChunk;
    store_element(data_, kStorage, at_ + (whole_ ? place : column), value);
  }

  __device__ void load(LaneRow<kSplit>& row) const {
    constexpr int kWords = LaneRow<kSplit>::kWords;
    if (!whole_) {
      load_singly(row);
      return;
    }
    const auto* from = reinterpret_cast<const char*>(data_) + at_ * (kSplit ? 4 : 2);
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 x = *chunk<const uint4>(from, i / 4);
      row.words[i] = x.x, row.words[i + 1] = x.y, row.words[i + 2] = x.z, row.words[i + 3] = x.w;
    }
  }

 private:
  /// Chunk i of this lane: those of a row's four lanes lie side by side.
  template <typename Chunk, typename T>
  __device__ static Chunk* chunk(T* row, int i) {
    return reinterpret_cast<Chunk*>(row) + 4 * i + lane_index() % 4;
  }

  __device__ void load_singly(LaneRow<kSplit>& row) const {
    const TilePlace place;
#pragma unroll
    for (int n = 0; n < kTileColumns; ++n) {
      float x[2];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = place.column(n, side);
        x[side] = column < width_ ? load_element(data_, kStorage, at_ + column) : 0.0f;
        if constexpr (kSplit) row.words[2 * n + side] = __float_as_uint(x[side]);
      }
      if constexpr (!kSplit) row.words[n] = pack_bfloat16(x[0], x[1]);
    }
  }

  float* data_;
  int64_t at_;  // in elements
  int64_t width_;
  bool whole_;
};

}  // namespace cluster_attention::cuda
