#pragma once

// The start u⁰ of centroid pooling and encoding (spec §6): strided means, a random sample,
// k-means++ (Arthur and Vassilvitskii 2007), farthest points, or given rows, as
// native/kernels/starts.cc makes them.
//
// Method: in k-means++ and farthest points every choice depends on the distances of all rows to all
// before: all blocks lower the distances by the row chosen last, the last one of a sequence chooses
// the next, and all wait for it. Squared distances are one chain of float32
// products and sums in order, as on the CPU; running sums are double, added as trees over 1024
// rows.

#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/start_params.h"
#include "native/core/order.h"

namespace cluster_attention::cuda {

constexpr int kStartThreads = 256;
/// Rows whose distances one block lowers, and whose sum is a step of the running sum.
constexpr int64_t kStartChunk = 1024;
constexpr int64_t kRowsPerThread = kStartChunk / kStartThreads;

CA_HOST_DEVICE inline int64_t start_chunks(int64_t length) {
  return (length + kStartChunk - 1) / kStartChunk;
}

/// a * b + c with two roundings, as the CPU's code has them.
__device__ inline float multiply_then_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

/// 1 / |row| of every row, 0 for a row of zeros. One thread per row.
__global__ void __launch_bounds__(kStartThreads) start_scales(const StartParams params) {
  // inputs: (batch,N,d) -> scales: (batch,N)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kStartThreads + threadIdx.x;
  if (index >= params.batch * params.length) return;
  const int64_t batch = index / params.length;
  if (index % params.length >= params.real(batch)) return;
  const Rows rows(params.inputs, batch, 0);
  const int64_t row = params.position(batch, index % params.length);
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  for (int64_t d = 0; d < params.dim; d += 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Products of two floats are exact in double.
      const double value = d + i < params.dim ? rows.element(row, d + i) : 0.0;
      sums[i] += value * value;
    }
  }
  const double squared = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  params.scales[index] = squared == 0.0 ? 0.0 : 1.0 / sqrt(squared);
}

struct StartShared {
  double sums[kWarp];
  int64_t places[kWarp];
  unsigned long long candidates[kWarp];
  double before;
  double target;
  int64_t chunk;
  int64_t last_positive;
  uint32_t ticket;
};

/// One sequence as the blocks of choose_start_row() see it.
class StartSequence {
 public:
  __device__ StartSequence(const StartParams& params, int64_t batch, int64_t draw)
      : params_(params),
        batch_(batch),
        draw_(draw),
        real_(params.real(batch)),
        rows_(params.inputs, batch, 0),
        distances_(params.distances + batch * params.length),
        taken_(params.taken + batch * params.length),
        chunk_sums_(params.chunk_sums + batch * start_chunks(params.length)),
        chunk_farthest_(params.chunk_farthest + batch * start_chunks(params.length)),
        shared_(*dynamic_shared<StartShared>()) {}

  /// Lowers the distances of a chunk by the row chosen last.
  __device__ void lower(int64_t chunk) {
    const int64_t last =
        draw_ == 1 ? params_.first_row(batch_) : params_.chosen[batch_ * params_.count + draw_ - 1];
    double sum = 0.0;
    unsigned long long farthest = 0;
    for (int64_t k = 0; k < kRowsPerThread; ++k) {
      const int64_t i = chunk * kStartChunk + k * kStartThreads + threadIdx.x;
      if (i >= real_) continue;
      if (draw_ == 1) taken_[i] = 0;
      if (i == last) taken_[i] = 1;
      const float before = draw_ == 1 ? INFINITY : distances_[i];
      const float now = squared_distance(i, last);
      // What float32 cannot hold does not tell which row is farthest.
      if (!(now < INFINITY)) mark_non_finite(params_.flags);
      float distance = now < before ? now : before;
      if (i == last) distance = 0.0f;  // even where the row holds NaN: no row is chosen twice
      distances_[i] = distance;
      sum += distance;
      const unsigned long long candidate = make_candidate(distance, static_cast<int32_t>(i));
      farthest = candidate > farthest ? candidate : farthest;
    }
    sum = block_sum(sum, shared_.sums);
    farthest = block_reduce(
        farthest, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; },
        shared_.candidates);
    if (threadIdx.x == 0) {
      chunk_sums_[chunk] = sum;
      chunk_farthest_[chunk] = farthest;
    }
  }

  /// By the last block: the row of this draw.
  __device__ void choose() {
    int64_t row = params_.start == PoolStart::farthest ? farthest() : draw();
    if (row < 0) row = lowest_unchosen();
    if (threadIdx.x == 0) {
      params_.chosen[batch_ * params_.count + draw_] = static_cast<int32_t>(row);
    }
  }

 private:
  __device__ float element(int64_t i, int64_t d) const {
    const float value = rows_.element(params_.position(batch_, i), d);
    if (!params_.unit_rows) return value;
    return static_cast<float>(value * params_.scales[batch_ * params_.length + i]);
  }

  __device__ float squared_distance(int64_t i, int64_t last) const {
    float sum = 0.0f;
    for (int64_t d = 0; d < params_.dim; ++d) {
      const float difference = element(i, d) - element(last, d);
      sum = multiply_then_add(difference, difference, sum);
    }
    return sum;
  }

  /// The row of the largest distance (tie: lowest), -1 when no distance is positive.
  __device__ int64_t farthest() {
    unsigned long long best = 0;
    for (int64_t c = threadIdx.x; c < start_chunks(real_); c += kStartThreads) {
      best = chunk_farthest_[c] > best ? chunk_farthest_[c] : best;
    }
    best = block_reduce(
        best, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; },
        shared_.candidates);
    return candidate_score(best) > 0.0f ? candidate_index(best) : -1;
  }

  /// The first row at which the running sum of the distances exceeds a share of their total, -1
  /// when no distance is positive.
  __device__ int64_t draw() {
    if (threadIdx.x == 0) find_chunk();
    __syncthreads();
    const int64_t chunk = shared_.chunk;
    if (chunk < 0) return shared_.last_positive;
    double mine = 0.0;
    const int64_t first = chunk * kStartChunk + threadIdx.x * kRowsPerThread;
    for (int64_t i = first; i < first + kRowsPerThread && i < real_; ++i) mine += distances_[i];
    double total = 0.0;
    double running = shared_.before + block_exclusive_sum(mine, shared_.sums, &total);
    int64_t reached = real_;
    int64_t positive = -1;
    for (int64_t i = first; i < first + kRowsPerThread && i < real_; ++i) {
      running += distances_[i];
      if (distances_[i] > 0.0f) positive = i;
      if (running > shared_.target && reached == real_) reached = i;
    }
    reached = block_reduce(
        reached, [](int64_t a, int64_t b) { return a < b ? a : b; }, shared_.places);
    positive = block_reduce(
        positive, [](int64_t a, int64_t b) { return a > b ? a : b; }, shared_.places);
    // Rounding may keep the sum from the target: then it is the last row that counts.
    return reached < real_ ? reached : positive;
  }

  __device__ void find_chunk() {
    const int64_t chunks = start_chunks(real_);
    double total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) total += chunk_sums_[c];
    shared_.target =
        random_uniform(params_.seed, RandomStream::plus_plus, static_cast<uint64_t>(draw_)) * total;
    shared_.before = 0.0;
    shared_.chunk = -1;
    shared_.last_positive = -1;
    for (int64_t c = 0; c < chunks; ++c) {
      if (chunk_sums_[c] > 0.0) shared_.last_positive = candidate_index(chunk_farthest_[c]);
      if (chunk_sums_[c] > 0.0 && shared_.before + chunk_sums_[c] > shared_.target) {
        shared_.chunk = c;
        return;
      }
      shared_.before += chunk_sums_[c];
    }
  }

  __device__ int64_t lowest_unchosen() {
    int64_t lowest = real_;
    for (int64_t i = threadIdx.x; i < real_ && lowest == real_; i += kStartThreads) {
      if (taken_[i] == 0) lowest = i;
    }
    return block_reduce(
        lowest, [](int64_t a, int64_t b) { return a < b ? a : b; }, shared_.places);
  }

  const StartParams& params_;
  const int64_t batch_;
  const int64_t draw_;  // the row that is chosen
  const int64_t real_;
  const Rows rows_;
  float* distances_;
  uint8_t* taken_;
  double* chunk_sums_;
  unsigned long long* chunk_farthest_;
  StartShared& shared_;
};

/// Row `draw` >= 1 of k-means++ or of the farthest points, block `index` of all chunks.
__device__ inline void choose_start_row(const StartParams& params, int64_t draw, int64_t index) {
  const int64_t chunks = start_chunks(params.length);
  const int64_t batch = index / chunks;
  // A sequence of fewer rows has chosen all that it will: there is no row chosen last.
  if (draw >= params.real_count(batch)) return;
  StartSequence sequence(params, batch, draw);
  sequence.lower(index % chunks);
  if (!last_block_done(params.tickets + batch, static_cast<uint32_t>(chunks),
                       &dynamic_shared<StartShared>()->ticket)) {
    return;
  }
  sequence.choose();
}

/// The rows that a launch chooses: the blocks of the grid wait for each.
__global__ void __launch_bounds__(kStartThreads) choose_start_rows(const StartParams params) {
  // inputs: (N,d) -> chosen: (M)
  for (int64_t draw = params.draws.begin; draw < params.draws.end; ++draw) {
    for_blocks(params.batch * start_chunks(params.length),
               [&](int64_t index) { choose_start_row(params, draw, index); });
    sync_grid();
  }
}

/// The rows [begin, end) whose mean centroid j begins with; none where it is padding or given.
__device__ inline void find_start_rows(const StartParams& params, int64_t batch, int64_t j,
                                       int64_t* begin, int64_t* end) {
  const int64_t real = params.real(batch);
  const int64_t count = params.real_count(batch);
  if (j >= count || params.start == PoolStart::given) return;
  if (params.start == PoolStart::stride) {
    *begin = j * real / count;
    *end = (j + 1) * real / count;
    return;
  }
  *begin = params.start == PoolStart::sample
               ? random_position(params.seed, RandomStream::start_positions, real, j)
               : (j == 0 ? params.first_row(batch) : params.chosen[batch * params.count + j]);
  *end = *begin + 1;
}

/// The starting centroids themselves; one block per centroid. Those past the real ones are zeros.
__global__ void __launch_bounds__(kStartThreads) place_start(const StartParams params) {
  // inputs: (N,d), chosen: (M) -> centroids: (1 of M,d)
  const int64_t batch = blockIdx.x / params.count;
  const int64_t j = blockIdx.x % params.count;
  const int64_t count = params.real_count(batch);
  const Rows rows(params.inputs, batch, 0);
  int64_t begin = 0;
  int64_t end = 0;
  find_start_rows(params, batch, j, &begin, &end);
  const int64_t place = (batch * params.count + j) * params.dim;
  for (int64_t d = threadIdx.x; d < params.dim; d += kStartThreads) {
    float value = 0.0f;
    if (params.start == PoolStart::given && j < count) {
      value = params.initial[place + d];
      if (params.round_initial) value = round_to_bfloat16(value);
    } else if (j < count) {
      double sum = 0.0;
      for (int64_t i = begin; i < end; ++i) sum += rows.element(params.position(batch, i), d);
      value = static_cast<float>(sum / static_cast<double>(end - begin));
    }
    params.centroids[place + d] = value;
    if (params.output != params.centroids) {
      store_element(params.output, params.storage, place + d, value);
    }
    if (!(fabsf(value) < INFINITY)) mark_non_finite(params.flags);
  }
}

struct StartGradientParams {
  StartParams start;
  const float* gradient = nullptr;  // (batch,M,d), by u⁰
  float* inputs = nullptr;          // (batch,N,d), float32
};

/// Adds the gradient by u⁰ to that by the rows that it was made of, each of which belongs to one
/// centroid. One block per centroid.
__global__ void __launch_bounds__(kStartThreads)
    add_start_gradient(const StartGradientParams params) {
  // gradient: (1 of M,d) -> inputs: (rows of 1,d)
  const StartParams& start = params.start;
  const int64_t batch = blockIdx.x / start.count;
  const int64_t j = blockIdx.x % start.count;
  int64_t begin = 0;
  int64_t end = 0;
  find_start_rows(start, batch, j, &begin, &end);
  const float* gradient = params.gradient + (batch * start.count + j) * start.dim;
  const float share = 1.0f / static_cast<float>(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    float* row = params.inputs + (batch * start.length + start.position(batch, i)) * start.dim;
    for (int64_t d = threadIdx.x; d < start.dim; d += kStartThreads) row[d] += share * gradient[d];
  }
}

/// Positions of the inputs whose weight is not 0, ascending. One block per batch entry.
__global__ void __launch_bounds__(kStartThreads) find_active(const ActiveParams params) {
  // weights: (N) -> index: (N), counts, centroids: (1)
  const int64_t batch = blockIdx.x;
  int32_t* scan = dynamic_shared<int32_t>();
  int32_t count = 0;
  for (int64_t first = 0; first < params.length; first += kStartThreads) {
    const int64_t i = first + threadIdx.x;
    const bool active = i < params.length && params.weights[batch * params.length + i] != 0.0f;
    int32_t total = 0;
    const int32_t rank = count + block_exclusive_sum<int32_t>(active ? 1 : 0, scan, &total);
    if (active) params.index[batch * params.length + rank] = static_cast<int32_t>(i);
    count += total;
  }
  if (threadIdx.x > 0) return;
  params.counts[batch] = count;
  const bool all = params.given || params.most_centroids < count;
  params.centroids[batch] = all ? static_cast<int32_t>(params.most_centroids) : count;
}

}  // namespace cluster_attention::cuda
