#pragma once

// The start u⁰ of centroid pooling and encoding (spec §6): strided means, a random sample,
// k-means++ (Arthur and Vassilvitskii 2007), farthest points, or given rows, as
// native/kernels/starts.cc makes them.
//
// The rows of k-means++ and of farthest points are chosen by start_rows.cuh.

#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/start_params.h"

namespace cluster_attention::cuda {

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
