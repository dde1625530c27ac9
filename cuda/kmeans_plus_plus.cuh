#pragma once

// The draws of k-means++ (Arthur and Vassilvitskii, 2007), all in one launch. As
// native/kernels/starts.cc, but for the distances, whose sums in double run over blocks of 1024
// rows as a tree.

#include "cuda/exact.cuh"
#include "cuda/kmeans_params.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/order.h"
#include "native/core/random.h"

namespace cluster_attention::cuda {

/// Rows and columns of a tile in shared memory, through which a block reads rows.
constexpr int kStartColumns = 32;
constexpr int kStartStride = kStartColumns + 1;

struct StartLayout {
  int64_t tile, center, sums, places, bytes;
};
CA_HOST_DEVICE inline StartLayout start_layout() {
  SharedLayout parts;
  const int64_t tile = parts.add<float>(kKMeansThreads * kStartStride);
  const int64_t center = parts.add<float>(kStartColumns);
  const int64_t sums = parts.add<double>(kWarp);
  const int64_t places = parts.add<int64_t>(kWarp);
  return {tile, center, sums, places, parts.bytes()};
}

/// Squared distances of the rows first + thread from row `center`: of unit rows under the cosine.
template <Read kRead>
__device__ float squared_distance(const KMeansParams& params, const KMeansSequence& sequence,
                                  int64_t first, int64_t center) {
  const StartLayout layout = start_layout();
  float* tile = dynamic_shared<float>(layout.tile);
  float* center_row = dynamic_shared<float>(layout.center);
  const int64_t dim = params.problem.dim;
  const double* scales = params.scales + sequence.index * params.problem.length;
  const auto element = [&](int64_t i, int64_t d) {
    const float value = element_of<kRead>(params, sequence, i, d);
    return params.cosine() ? static_cast<float>(exact_product(double{value}, scales[i])) : value;
  };
  float sum = 0.0f;
  for (int64_t column = 0; column < dim; column += kStartColumns) {
    const int columns =
        static_cast<int>(dim - column < kStartColumns ? dim - column : kStartColumns);
    const int d = lane_index();
    for (int row = warp_index(); row < kKMeansThreads && first + row < sequence.length;
         row += kKMeansThreads / kWarp) {
      if (d < columns) tile[row * kStartStride + d] = element(first + row, column + d);
    }
    if (warp_index() == 0 && d < columns) center_row[d] = element(center, column + d);
    __syncthreads();
    for (int k = 0; k < columns; ++k) {
      const float difference =
          tile[static_cast<int>(threadIdx.x) * kStartStride + k] - center_row[k];
      sum += exact_product(difference, difference);
    }
    __syncthreads();
  }
  return sum;
}

/// The lowest row that is not chosen yet; all threads of the block call it.
__device__ inline int64_t lowest_unchosen(const KMeansParams& params,
                                          const KMeansSequence& sequence, int64_t* scratch) {
  const uint8_t* taken = params.taken + sequence.index * params.problem.length;
  const auto lower = [](int64_t a, int64_t b) { return a < b ? a : b; };
  for (int64_t first = 0; first < sequence.length; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const bool free = i < sequence.length && taken[i] == 0;
    const int64_t lowest = block_reduce(free ? i : sequence.length, lower, scratch);
    if (lowest < sequence.length) return lowest;
  }
  return 0;  // not reached: fewer rows are chosen than there are
}

/// The first row at which the running sum of the distances exceeds `share` of their total, -1 when
/// no distance is positive; by the last block of a sequence.
__device__ inline int64_t draw_row(const KMeansParams& params, const KMeansSequence& sequence,
                                   double share, double* sums, int64_t* places) {
  const double* chunk_sums = params.chunk_sums + sequence.index * params.chunks;
  const int64_t* farthest = params.chunk_farthest + sequence.index * params.chunks;
  const float* distances = params.distances + sequence.index * params.problem.length;
  const int64_t chunks = divide_up(sequence.length, kKMeansChunk);
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) total += chunk_sums[c];
    const double target = share * total;
    double before = 0.0;
    int64_t last_positive = -1;
    int64_t found = -1;
    for (int64_t c = 0; c < chunks && found < 0; ++c) {
      const double sum = chunk_sums[c];
      if (sum > 0.0) last_positive = farthest[c];
      if (sum > 0.0 && before + sum > target) {
        found = c;
      } else {
        before += sum;
      }
    }
    places[0] = found;
    places[1] = last_positive;
    sums[0] = before;
    sums[1] = target;
  }
  __syncthreads();
  const int64_t chunk = places[0];
  int64_t row = places[1];
  double before = sums[0];
  const double target = sums[1];
  __syncthreads();
  if (chunk < 0) return row;
  const int64_t begin = chunk * kKMeansChunk;
  const auto lower = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto higher = [](int64_t a, int64_t b) { return a > b ? a : b; };
  for (int64_t first = begin; first < begin + kKMeansChunk; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const float distance = i < sequence.length ? distances[i] : 0.0f;
    double added;
    const double running =
        before + block_exclusive_sum(static_cast<double>(distance), sums, &added) + distance;
    const bool past = i < sequence.length && running > target;
    const int64_t reached = block_reduce(past ? i : sequence.length, lower, places);
    if (reached < sequence.length) return reached;
    // Rounding may keep the sum from the target: then it is the last row that counts.
    const int64_t positive = block_reduce(distance > 0.0f ? i : int64_t{-1}, higher, places);
    row = positive >= 0 ? positive : row;
    before += added;
  }
  return row;
}

/// Draw `draw` >= 1, chunk `index` of all sequences: lowers the distances by the row drawn before;
/// then the last block of a sequence draws with probability proportional to them.
template <Read kRead>
__device__ void draw_next_row(const KMeansParams& params, int64_t draw, int64_t index) {
  const StartLayout layout = start_layout();
  double* sums = dynamic_shared<double>(layout.sums);
  int64_t* places = dynamic_shared<int64_t>(layout.places);
  const KMeansSequence sequence(params, index / params.chunks);
  const int64_t chunk = index % params.chunks;
  int64_t* chosen = params.chosen + sequence.index * params.clusters;
  float* distances = params.distances + sequence.index * params.problem.length;
  uint8_t* taken = params.taken + sequence.index * params.problem.length;
  const uint64_t seed = params.problem.seed;
  const bool first_draw = draw == 1;
  if (sequence.clusters == 0 || (draw >= sequence.clusters && !first_draw)) return;
  double u = random_uniform(seed, RandomStream::plus_plus, 0);
  const int64_t center = first_draw ? static_cast<int64_t>(u * static_cast<double>(sequence.length))
                                    : chosen[draw - 1];
  double sum = 0.0;
  Candidate farthest = 0;  // distance and place in the chunk: the larger the better
  for (int64_t first = chunk * kKMeansChunk;
       first < (chunk + 1) * kKMeansChunk && first < sequence.length; first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    const float squared = squared_distance<kRead>(params, sequence, first, center);
    if (i >= sequence.length) continue;
    // What float32 cannot hold does not tell how likely a row is.
    if (!is_finite(squared)) mark_non_finite(params.flags);
    float distance = first_draw ? __int_as_float(0x7f800000) : distances[i];
    if (squared < distance) distance = squared;
    if (i == center) distance = 0.0f;  // even where the row holds NaN: no row is chosen twice
    if (i == center || first_draw) taken[i] = i == center ? 1 : 0;
    distances[i] = distance;
    sum += static_cast<double>(distance);
    const Candidate candidate =
        make_candidate(distance, static_cast<int32_t>(i - chunk * kKMeansChunk));
    farthest = candidate > farthest ? candidate : farthest;
  }
  sum = block_sum(sum, sums);
  farthest = block_reduce(
      farthest, [](Candidate a, Candidate b) { return a > b ? a : b; },
      reinterpret_cast<Candidate*>(places));
  if (threadIdx.x == 0) {
    params.chunk_sums[index] = sum;
    params.chunk_farthest[index] = chunk * kKMeansChunk + candidate_index(farthest);
  }
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.chunks),
                       reinterpret_cast<uint32_t*>(places))) {
    return;
  }
  if (first_draw && threadIdx.x == 0) chosen[0] = center;
  if (draw >= sequence.clusters) return;
  u = random_uniform(seed, RandomStream::plus_plus, draw);
  int64_t row = draw_row(params, sequence, u, sums, places);
  if (row < 0) row = lowest_unchosen(params, sequence, places);
  if (threadIdx.x == 0) chosen[draw] = row;
}

/// The draws of a launch: the blocks of the grid wait for each.
template <Read kRead>
__global__ void __launch_bounds__(kKMeansThreads) plus_plus_kernel(const KMeansParams params) {
  // block: rows (1024,dim) -> distances (1024); the last block: distances (length) -> row
  const int64_t chunks = params.problem.batch * params.problem.heads * params.chunks;
  for (int64_t draw = params.draws.begin; draw < params.draws.end; ++draw) {
    for_blocks(chunks, [&](int64_t index) { draw_next_row<kRead>(params, draw, index); });
    sync_grid();
  }
}

}  // namespace cluster_attention::cuda
