#pragma once

// Kernels of top_key_gradient.h. A block takes a tile of one cluster's members, or of its keys.
// Method, precision, limits: gradient_tile.cuh.

#include "cuda/gradient_operands.cuh"
#include "cuda/gradient_sums.cuh"
#include "cuda/member_tile.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/top_key_gradient.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

constexpr int kTopKeyWarps = 4;
/// Words of shared memory that find_member_tile() needs behind the tile's.
constexpr int kMemberTileWords = 48;

/// Of the queries [begin, end) of the order that meet the top keys of their cluster.
__device__ inline GradientTask top_key_task(const TopKeyGradient& problem, int64_t sequence) {
  GradientTask task;
  task.batch = sequence / problem.shape.heads;
  task.head = sequence % problem.shape.heads;
  task.maximum = problem.maximum + sequence * problem.shape.query_length;
  task.offset = problem.offset + sequence * problem.shape.query_length;
  task.scale_log2 = problem.scale * kLog2E;
  return task;
}
__device__ inline GradientSide member_side(const TopKeyGradient& problem, int64_t sequence,
                                           int64_t begin, int64_t end) {
  return {&problem.query_operands, problem.order + sequence * problem.shape.query_length, begin,
          end};
}
__device__ inline GradientSide top_key_side(const TopKeyGradient& problem, int64_t cluster,
                                            int64_t begin) {
  return {&problem.key_operands, problem.lists + cluster * problem.top_k, begin,
          problem.list_counts[cluster]};
}

/// Tile `tile` of the members of a sequence; the cluster is -1 where it has fewer tiles.
template <int kWidth, bool kSplit>
__device__ MemberTile member_tile(const TopKeyGradient& problem, int64_t sequence, int64_t tile) {
  using Sizes = GradientSizes<kWidth, kSplit>;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  return find_member_tile(
      problem.offsets + sequence * (problem.clusters + 1), problem.clusters, tile,
      Sizes::kWarpRows * warps,
      dynamic_shared<int32_t>(Sizes::layout(warps, buffers_of_block<Sizes>(warps)).bytes));
}

// ---- terms ------------------------------------------------------------------------------------

struct TopKeyTermsParams {
  TopKeyGradient problem;
  int64_t tiles;  // most that the clusters of a sequence can have
  bool wants_offset;
};

/// The online softmax of a tile of queries, with the sum of p x.
template <int kWidth, bool kSplit>
class TopKeyTerms {
 public:
  using Tile = GradientTile<kWidth, kSplit>;
  using Scores = typename Tile::Scores;

  __device__ TopKeyTerms(const GradientTask& task, bool wants_offset)
      : task_(task), wants_offset_(wants_offset) {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        state_[m][half] = SoftmaxState();
        change_[m][half] = 0.0f;
      }
    }
  }

  __device__ void run() {
    Tile tile(task_, false);
    tile.run([&](int buffer, int64_t first) {
      Scores scores;
      Scores change = {};
      tile.multiply(0, buffer, scores);
      if (wants_offset_) tile.multiply(1, buffer, change);
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        add(m, 0, first, scores[m], change[m]);
        add(m, 1, first, scores[m], change[m]);
      }
    });
  }

  /// write(own row relative to the first, maximum, offset), by one lane for each row. `mass` scales
  /// the weights.
  template <typename Write>
  __device__ void for_each(float mass, Write write) const {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = warp_sum(state_[m][half].sum, 4);
        const float change = warp_sum(change_[m][half], 4);
        if (lane_index() % 4 != 0) continue;
        const float maximum = state_[m][half].maximum + log2f(sum) - log2f(mass);
        write(Tile::row_of(m, half), sum == 0.0f ? HUGE_VALF : maximum,
              sum == 0.0f ? 0.0f : change / sum);
      }
    }
  }

 private:
  __device__ void add(int m, int half, int64_t first, const float (&scores)[Tile::kScoreTiles][4],
                      const float (&change)[Tile::kScoreTiles][4]) {
    SoftmaxState& state = state_[m][half];
    const auto logit = [&](int n, int i) {
      const bool real = first + Tile::column_of(n, i) < task_.met.end;
      return real ? scores[n][i] * task_.scale_log2 : -HUGE_VALF;
    };
    float largest = state.maximum;
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) largest = max_or_nan(largest, logit(n, i));
    }
    largest = max_or_nan(largest, shuffle_xor(largest, 1));
    largest = max_or_nan(largest, shuffle_xor(largest, 2));
    const float factor = SoftmaxState::shift(state.maximum, largest);
    state.maximum = largest;
    state.sum *= factor;
    change_[m][half] *= factor;
    const float base = largest == -HUGE_VALF ? 0.0f : largest;
#pragma unroll
    for (int n = 0; n < Tile::kScoreTiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const float weight = exp2f(logit(n, i) - base);
        state.sum += weight;
        change_[m][half] = fmaf(weight, change[n][i], change_[m][half]);
      }
    }
  }

  const GradientTask& task_;
  const bool wants_offset_;
  SoftmaxState state_[Tile::kRowTiles][2];  // sums of this lane's keys
  float change_[Tile::kRowTiles][2];
};

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kTopKeyWarps* kWarp)
    top_key_terms_kernel(const TopKeyTermsParams params) {
  // members' q, g (rows, D|E), key, value of T_j (k, D|E) -> maximum, offset (rows)
  const TopKeyGradient& problem = params.problem;
  const int64_t sequence = blockIdx.x / params.tiles;
  const MemberTile members =
      member_tile<kWidth, kSplit>(problem, sequence, blockIdx.x % params.tiles);
  if (members.cluster < 0) return;
  const int64_t cluster = sequence * problem.clusters + members.cluster;
  GradientTask task = top_key_task(problem, sequence);
  task.own = member_side(problem, sequence, members.first, members.end);
  task.met = top_key_side(problem, cluster, 0);
  TopKeyTerms<kWidth, kSplit> terms(task, params.wants_offset);
  terms.run();
  const int64_t queries = sequence * problem.shape.query_length;
  terms.for_each(problem.masses[cluster], [&](int row, float maximum, float offset) {
    if (task.own.begin + row >= task.own.end) return;
    const int64_t query = queries + task.own.row(task.own.begin + row);
    problem.maximum[query] = maximum;
    problem.offset[query] = offset;
  });
}

// ---- queries ----------------------------------------------------------------------------------

struct TopKeyQueriesParams {
  TopKeyGradient problem;
  int64_t tiles;
  const float* mean_gradient;  // (B,H,C,D)
  StoredOutput query;          // (B,H,L,D)
  Flags* flags;
};

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kTopKeyWarps* kWarp)
    top_key_queries_kernel(const TopKeyQueriesParams params) {
  // members' q, g (rows, D|E), key, value of T_j (k, D|E) -> dq (rows, D)
  using Sizes = GradientSizes<kWidth, kSplit>;
  const TopKeyGradient& problem = params.problem;
  const int64_t block = blockIdx.x / Sizes::kSlices;
  const int slice = static_cast<int>(blockIdx.x % Sizes::kSlices);
  if (int64_t{Sizes::kSlice} * slice >= problem.shape.head_dim) return;
  const int64_t sequence = block / params.tiles;
  const MemberTile members = member_tile<kWidth, kSplit>(problem, sequence, block % params.tiles);
  if (members.cluster < 0) return;
  const int64_t cluster = sequence * problem.clusters + members.cluster;
  GradientTask task = top_key_task(problem, sequence);
  task.own = member_side(problem, sequence, members.first, members.end);
  task.met = top_key_side(problem, cluster, 0);
  task.slice = slice;
  GradientSums<kWidth, kSplit, false> sums(task);
  sums.run();
  const float* mean = params.mean_gradient + cluster * problem.shape.head_dim;
  const int64_t queries = params.query.offset(task.batch, task.head, 0);
  bool bad = false;
  sums.for_each([&](int row, int column, float change, float) {
    const int64_t place = task.own.begin + row;
    if (place >= task.own.end || column >= problem.shape.head_dim) return;
    const float value = fmaf(change, problem.scale, mean[column]);
    bad = bad || !(fabsf(value) < HUGE_VALF);
    params.query.store(queries + task.own.row(place) * params.query.row_stride + column, value);
  });
  if (bad) mark_non_finite(params.flags);
}

// ---- rows of keys -----------------------------------------------------------------------------

struct TopKeyRowsParams {
  TopKeyGradient problem;
  TopKeyRows rows;
  int64_t tiles;  // of the keys of a cluster
};

template <int kWidth, bool kSplit>
__global__ void __launch_bounds__(kTopKeyWarps* kWarp)
    top_key_rows_kernel(const TopKeyRowsParams params) {
  // key, value of T_j (rows, D|E), members' q, g (n, D|E) -> key_rows, value_rows (rows, D|E)
  using Sizes = GradientSizes<kWidth, kSplit>;
  const TopKeyGradient& problem = params.problem;
  const TopKeyRows& rows = params.rows;
  const int slice = static_cast<int>(blockIdx.x % Sizes::kSlices);
  const int64_t tile = blockIdx.x / Sizes::kSlices % params.tiles;
  const int64_t one = blockIdx.x / Sizes::kSlices / params.tiles;  // sequence * count + place
  const int64_t sequence = one / rows.count;
  const int64_t cluster = rows.first + one % rows.count;
  const int32_t* offsets = problem.offsets + sequence * (problem.clusters + 1) + cluster;
  const int64_t row = sequence * problem.clusters + cluster;
  const int64_t begin = tile * Sizes::kWarpRows * (static_cast<int64_t>(blockDim.x) / kWarp);
  if (begin >= problem.list_counts[row]) return;
  const int64_t dim = problem.shape.head_dim;
  const int64_t value_dim = problem.shape.value_dim;
  GradientTask task = top_key_task(problem, sequence);
  task.own = top_key_side(problem, row, begin);
  task.met = member_side(problem, sequence, offsets[0], offsets[1]);
  task.slice = slice;
  task.wants_first = rows.key_rows != nullptr && int64_t{Sizes::kSlice} * slice < dim;
  task.wants_second = rows.value_rows != nullptr && int64_t{Sizes::kSlice} * slice < value_dim;
  GradientSums<kWidth, kSplit, true> sums(task);
  sums.run();
  sums.for_each([&](int own, int column, float change, float weighted) {
    const int64_t t = begin + own;
    if (t >= task.own.end) return;
    const int64_t slot = row * problem.top_k + t;
    if (task.wants_first && column < dim) {
      const float mean =
          operand_element(problem.mean_operands.first, task.batch, task.head, cluster, column);
      rows.key_rows[(one * problem.top_k + t) * dim + column] =
          problem.scale * fmaf(rows.changes[slot], mean, change);
    }
    if (task.wants_second && column < value_dim) {
      const float gradient =
          operand_element(problem.mean_operands.second, task.batch, task.head, cluster, column);
      rows.value_rows[(one * problem.top_k + t) * value_dim + column] =
          fmaf(-rows.shares[slot], gradient, weighted);
    }
  });
}

}  // namespace cluster_attention::cuda
