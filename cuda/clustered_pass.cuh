#pragma once

// V^c = softmax(tau q̄ K^T) V over stretches of the keys, and what the choice of T_j, the top k keys
// of each cluster by q̄_j·k, needs to know of the scores.
//
// Method: a block takes a tile of clusters and one stretch of the keys through AttentionTile;
// states and partial outputs of the stretches are joined by join_stretches (join_stretches.cuh). Of
// the scores the largest of every group of four or eight neighbouring keys is kept: the k groups
// with the largest ones hold the k best keys (top_keys.cuh). No C x S matrix: there are at most
// kMostGroups groups in a sequence, larger ones where there are more keys; memory O(C (E stretches
// + groups)), with at most 64 stretches. Precision: of attention_tile.cuh. Scores are compared as
// float32; those of operands in two parts may order keys differently from the CPU where two of them
// agree to about 1e-5. Limits: D, E <= kWidth.

#include "cuda/attention_tile.cuh"
#include "cuda/clustered_pass.h"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

/// Neighbouring keys of which the largest score is kept.
constexpr int kFoursShift = 2;
constexpr int kEightsShift = 3;         // larger groups are of 64 or a power of two more
constexpr int64_t kMostFours = 4096;    // groups; where all fit in shared memory to choose from
constexpr int64_t kMostGroups = 16384;  // of other sizes

/// What a block leaves of its stretch.
struct PassPartials {
  float* outputs;        // (B,H,C,stretches,columns of the value operand), relative to the state
  SoftmaxState* states;  // (B,H,C,stretches)
  float* maxima;         // (B,H,C,group_pitch); null without top-k
};

struct PassParams {
  const float* means;  // (B,H,C,D)
  const int32_t* offsets;
  KeysAndValues operands;
  PassPartials partials;
  const int32_t* query_lengths;
  const int32_t* key_lengths;
  int64_t heads;
  int64_t key_length;
  int64_t clusters;
  int64_t tiles;      // of clusters in a sequence
  int64_t stretches;  // of keys
  int64_t stretch;    // keys in one
  int64_t group_pitch;
  int32_t group_shift;  // log2 of the keys in a group
  int32_t head_dim;
  float scale;
  Flags* flags;
};

/// Stretches that hold a real key; one at least, which tells that there is none.
CA_HOST_DEVICE inline int64_t real_stretches(int64_t keys, int64_t stretch) {
  return keys > 0 ? (keys + stretch - 1) / stretch : 1;
}

/// Narrow tiles: a warp that only copies leaves the others registers, and makes of seven warps as
/// many for each of a multiprocessor's four schedulers.
template <int kWidth>
constexpr bool kPassFed = kWidth <= 64;

/// Mean queries are float32 in any case, and near scores decide about top keys: two parts.
template <int kWidth, bool kSplit>
using PassTile = AttentionTile<kWidth, kSplit, 1, true, kPassFed<kWidth>>;

/// The larger of two, NaN when either is.
__device__ inline float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return max_or_nan(a, b);
#endif
}

/// The largest score of every group of keys, of the rows of one warp.
template <typename Tile>
class GroupMaxima {
 public:
  /// `maxima`: of the lane's two rows, or null.
  __device__ GroupMaxima(float* const (&maxima)[2], const TileTask& task, int group_shift)
      : end_key_(task.end_key), shift_(group_shift), maxima_{maxima[0], maxima[1]} {
    running_[0] = running_[1] = -HUGE_VALF;
  }

  /// A block of keys, in order; all lanes of the warp together.
  __device__ void add(int64_t first_key, const typename Tile::Scores& scores) {
    const int64_t left = end_key_ - first_key;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest[Tile::kScoreTiles];
      if (left >= Tile::kKeys) {
#pragma unroll
        for (int n = 0; n < Tile::kScoreTiles; ++n) {
          largest[n] = larger_or_nan(scores[n][half * 2], scores[n][half * 2 + 1]);
        }
      } else {
#pragma unroll
        for (int n = 0; n < Tile::kScoreTiles; ++n) {
          const int real = static_cast<int>(left) - Tile::key_of(n, 0);
          const float second = real > 1 ? scores[n][half * 2 + 1] : -HUGE_VALF;
          largest[n] = larger_or_nan(real > 0 ? scores[n][half * 2] : -HUGE_VALF, second);
        }
      }
      if (shift_ == kFoursShift) {
        store_fours(half, first_key, largest);
      } else if (shift_ == kEightsShift) {
        store_eights(half, first_key, largest);
      } else {
        store_all(half, first_key, largest);
      }
    }
  }

 private:
  /// Groups of four keys, of which two neighbouring lanes have two each: halves change places
  /// between those, and then between the pairs of lanes, until each lane has neighbours in memory.
  __device__ void store_fours(int half, int64_t first_key,
                              const float (&largest)[Tile::kScoreTiles]) {
    constexpr int kHalf = Tile::kScoreTiles / 2;
    constexpr int kRun = kHalf > 1 ? kHalf / 2 : 1;  // of tiles that stay with one lane
    const int lane = lane_index() % 4;
    const bool even = lane % 2 == 0;
    float one[kHalf];  // of every other run of tiles: groups of the lane's side
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int n = i / kRun * 2 * kRun + i % kRun;
      const float sent = shuffle_xor(even ? largest[n + kRun] : largest[n], 1);
      one[i] = larger_or_nan(even ? largest[n] : largest[n + kRun], sent);
    }
    float* to = maxima_[half] + (first_key >> kFoursShift);
    if constexpr (kHalf == 1) {
      if (maxima_[half] != nullptr) to[lane % 2 * 2 + lane / 2] = one[0];
    } else {
      float both[2 * kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float mine = lane < 2 ? one[i] : one[i + kRun];
        const float sent = shuffle_xor(lane < 2 ? one[i + kRun] : one[i], 2);
        both[2 * i] = lane < 2 ? mine : sent;
        both[2 * i + 1] = lane < 2 ? sent : mine;
      }
      if (maxima_[half] == nullptr) return;
      if constexpr (kRun == 2) {
        reinterpret_cast<float4*>(to)[lane] = make_float4(both[0], both[1], both[2], both[3]);
      } else {
        reinterpret_cast<float2*>(to)[lane] = make_float2(both[0], both[1]);
      }
    }
  }

  /// Groups of eight keys, one score tile each: halves change places between the lanes of a row
  /// until each lane has whole groups, neighbours in memory.
  __device__ void store_eights(int half, int64_t first_key,
                               const float (&largest)[Tile::kScoreTiles]) {
    constexpr int kHalf = Tile::kScoreTiles / 2;
    const int lane = lane_index() % 4;
    float two[kHalf];  // of the tiles of lanes 0 and 1, or of 2 and 3
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = shuffle_xor(lane < 2 ? largest[i + kHalf] : largest[i], 2);
      two[i] = larger_or_nan(lane < 2 ? largest[i] : largest[i + kHalf], sent);
    }
    float* to = maxima_[half] + (first_key >> kEightsShift);
    if constexpr (kHalf == 1) {
      const float one = larger_or_nan(two[0], shuffle_xor(two[0], 1));
      if (maxima_[half] != nullptr && lane % 2 == 0) to[lane / 2] = one;
    } else {
      constexpr int kQuarter = kHalf / 2;
      float one[kQuarter];
#pragma unroll
      for (int i = 0; i < kQuarter; ++i) {
        const float sent = shuffle_xor(lane % 2 == 0 ? two[i + kQuarter] : two[i], 1);
        one[i] = larger_or_nan(lane % 2 == 0 ? two[i] : two[i + kQuarter], sent);
      }
      if (maxima_[half] == nullptr) return;
      if constexpr (kQuarter == 2) {
        reinterpret_cast<float2*>(to)[lane] = make_float2(one[0], one[1]);
      } else {
        to[lane] = one[0];
      }
    }
  }

  /// Groups of several blocks.
  __device__ void store_all(int half, int64_t first_key,
                            const float (&largest)[Tile::kScoreTiles]) {
    float one = largest[0];
#pragma unroll
    for (int n = 1; n < Tile::kScoreTiles; ++n) one = larger_or_nan(one, largest[n]);
    one = larger_or_nan(one, shuffle_xor(one, 1));
    one = larger_or_nan(one, shuffle_xor(one, 2));
    running_[half] = larger_or_nan(running_[half], one);
    const int64_t next = first_key + Tile::kKeys;
    if ((next & ((int64_t{1} << shift_) - 1)) != 0 && next < end_key_) return;
    if (maxima_[half] != nullptr && lane_index() % 4 == 0) {
      maxima_[half][first_key >> shift_] = running_[half];
    }
    running_[half] = -HUGE_VALF;
  }

  int64_t end_key_;
  int shift_;
  float* maxima_[2];
  float running_[2];
};

constexpr int kPassWarps = 8;  // at most
/// Blocks that a multiprocessor shall hold: a warp waits more than it computes.
template <int kWidth>
constexpr int kPassBlocks = kWidth <= 64 ? 2 : 1;

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kPassWarps* kWarp, kPassBlocks<kWidth>)
    pass_stretches(const PassParams params) {
  // means (B,H,C,D), key (B,H,S,D), value (B,H,S,E) -> partials of (cluster tile, stretch)
  using Tile = PassTile<kWidth, kSplit>;
  const int warps = Tile::query_warps();
  // All of them fit as the grid does.
  const uint32_t stretches = static_cast<uint32_t>(params.stretches);
  const uint32_t tiles = static_cast<uint32_t>(params.tiles);
  const uint32_t heads = static_cast<uint32_t>(params.heads);
  const int64_t part = blockIdx.x % stretches;
  const uint32_t number = blockIdx.x / stretches;
  const uint32_t sequence = number / tiles;
  TileTask task;
  task.batch = sequence / heads;
  task.head = sequence % heads;
  task.first_query = int64_t{number % tiles} * Tile::Sizes::kWarpRows * warps;
  task.queries = params.clusters;
  // Without queries the operands of the keys have not been made.
  const bool asked = real_length(params.query_lengths, task.batch, 1) > 0;
  const int64_t keys = asked ? real_length(params.key_lengths, task.batch, params.key_length) : 0;
  task.first_key = part * params.stretch;
  task.end_key = task.first_key + params.stretch < keys ? task.first_key + params.stretch : keys;
  task.scale_log2 = params.scale * kLog2E;
  if (part >= real_stretches(keys, params.stretch)) return;
  const int64_t last = task.first_query + Tile::Sizes::kWarpRows * warps;
  const int32_t* offsets = params.offsets + sequence * (params.clusters + 1);
  const int64_t end = last < params.clusters ? last : params.clusters;
  const int32_t members = offsets[end] - offsets[task.first_query];
  const int64_t first_row = sequence * params.clusters + task.first_query;

  Tile tile(task, params.operands);
  const float* means = params.means + first_row * params.head_dim;
  const bool vectors = params.head_dim % 4 == 0;
  tile.load_queries([&](int row, int column, float(&values)[8]) {
    load_eight(means + static_cast<int64_t>(row) * params.head_dim + column, vectors,
               params.head_dim - column, values);
  });
  if (members == 0) {  // in the whole tile; nobody waited for this to be known
    wait_copies<0>();
    return;
  }
  if (params.partials.maxima == nullptr) {
    tile.run();
  } else {
    float* rows[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t row = tile.row_of(0, half);
      const bool real = task.first_query + row < params.clusters;
      rows[half] = real ? params.partials.maxima + (first_row + row) * params.group_pitch : nullptr;
    }
    GroupMaxima<Tile> maxima(rows, task, params.group_shift);
    tile.run([&](int, int64_t first_key, const typename Tile::Scores& scores) {
      maxima.add(first_key, scores);
    });
  }
  if (!Tile::has_queries()) return;
  tile.join_sums();
  if (tile.saw_infinity()) mark_non_finite(params.flags);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (task.first_query + tile.row_of(0, half) >= params.clusters) continue;
    const int64_t place = (first_row + tile.row_of(0, half)) * params.stretches + part;
    if (lane_index() % 4 == 0) params.partials.states[place] = tile.state(0, half);
    const int columns = params.operands.value.columns;
    float* output = params.partials.outputs + place * columns;
#pragma unroll
    for (int n = 0; n < Tile::kOutputTiles; ++n) {
      if (n * 8 >= columns) continue;
      *reinterpret_cast<float2*>(output + Tile::column(n)) =
          make_float2(tile.output(0, half, n, 0), tile.output(0, half, n, 1));
    }
  }
}

}  // namespace cluster_attention::cuda
