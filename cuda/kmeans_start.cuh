#pragma once

// The first centroids of K-means, once k-means++ has drawn its rows, and what all iterations share:
// the point that rows and centroids are measured from, inverse lengths, the packed rows and the
// tolerance. As native/kernels/lloyd.cc and starts.cc, in whose order every double is summed.

#include "cuda/exact.cuh"
#include "cuda/kmeans_params.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/random.h"

namespace cluster_attention::cuda {

/// Inverse lengths of the rows, for the cosine.
template <Read kRead>
__global__ void kmeans_scales_kernel(const KMeansParams params) {
  // thread: row (dim) -> scale
  const int64_t blocks = divide_up(params.problem.length, kKMeansThreads);
  const KMeansSequence sequence(params, blockIdx.x / blocks);
  const int64_t i = blockIdx.x % blocks * kKMeansThreads + threadIdx.x;
  if (i >= sequence.length) return;
  params.scales[sequence.index * params.problem.length + i] = inverse_length(
      params.problem.dim, [&](int64_t d) { return element_of<kRead>(params, sequence, i, d); });
}

/// The mean rounded to a multiple of a power of two no less than the deviation: near the mean on
/// the scale of the data, and an integer for integers that are spread at all.
__device__ inline float grid_mean(double mean, double deviation, float any_value) {
  if (deviation == 0.0) return any_value;  // all the same
  int exponent = 0;
  const double fraction = frexp(deviation, &exponent);
  const double grid = ldexp(1.0, fraction == 0.5 ? exponent - 1 : exponent);
  const float rounded = static_cast<float>(exact_product(nearbyint(mean / grid), grid));
  return is_finite(rounded) ? rounded : 0.0f;
}

/// What the assignment reads of centroid c: its distance from the origin, and -|shifted|²/2. A warp
/// or a thread may do it: `centroid` and `shifted` are (dim), visible to the thread.
__device__ inline float centroid_bias(const KMeansParams& params, const float* centroid,
                                      const float* shifted) {
  const int64_t dim = params.problem.dim;
  double distance = sum_terms(
      dim, [=](int64_t d) { return exact_product(double{shifted[d]}, double{shifted[d]}); });
  // A centroid of zeros has cosine 0 with everything, as if it were a unit vector at a right angle.
  if (params.cosine() && sum_terms(dim, [=](int64_t d) {
                           return exact_product(double{centroid[d]}, double{centroid[d]});
                         }) == 0.0) {
    distance += 1.0;
  }
  return static_cast<float>(-0.5 * distance);
}

/// The row that becomes centroid c.
__device__ inline int64_t starting_row(const KMeansParams& params, const KMeansSequence& sequence,
                                       int64_t c) {
  const uint64_t seed = params.problem.seed;
  if (params.problem.start == KMeansStart::sample) {
    return random_position(seed, RandomStream::start_positions, sequence.length, c);
  }
  if (c > 0) return params.chosen[sequence.index * params.clusters + c];
  return static_cast<int64_t>(random_uniform(seed, RandomStream::plus_plus, 0) *
                              static_cast<double>(sequence.length));
}

/// Copies the starting rows, chooses the origin, and writes all that lies past the real length and
/// past the clamp.
template <Read kRead>
__global__ void kmeans_start_kernel(const KMeansParams params) {
  // block: rows (clusters,dim) -> centroids (clusters,dim), origin (dim)
  const KMeansProblem& problem = params.problem;
  const KMeansSequence sequence(params, blockIdx.x);
  const int64_t dim = problem.dim;
  const int64_t clusters = sequence.clusters;
  float* centroids = problem.centroids + sequence.index * problem.clusters * dim;
  float* origin = params.origin + sequence.index * dim;
  for (int64_t i = threadIdx.x; i < problem.length; i += blockDim.x) {
    problem.labels[sequence.index * problem.length + i] = -1;
  }
  for (int64_t c = clusters + threadIdx.x; c < problem.clusters; c += blockDim.x) {
    problem.counts[sequence.index * problem.clusters + c] = 0;
  }
  for (int64_t i = threadIdx.x; i < problem.clusters * dim; i += blockDim.x) {
    const int64_t c = i / dim;
    float value = 0.0f;
    if (c < clusters) {
      if (problem.start == KMeansStart::given) {
        value = problem.initial[sequence.index * problem.clusters * dim + i];
        if (params.round_initial) value = round_to_bfloat16(value);
      } else {
        value = element_of<kRead>(params, sequence, starting_row(params, sequence, c), i % dim);
      }
      if (!is_finite(value)) mark_non_finite(params.flags);
    }
    centroids[i] = value;
  }
  __syncthreads();
  if (params.cosine()) {
    for (int64_t c = threadIdx.x; c < clusters; c += blockDim.x) {
      float* centroid = centroids + c * dim;
      const double scale = inverse_length(dim, [=](int64_t d) { return centroid[d]; });
      for (int64_t d = 0; d < dim; ++d) {
        centroid[d] = static_cast<float>(exact_product(double{centroid[d]}, scale));
      }
    }
    __syncthreads();
  }
  for (int64_t d = threadIdx.x; d < dim && clusters > 0; d += blockDim.x) {
    const float first = centroids[d];
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c < clusters; ++c) {
      const double offset = static_cast<double>(centroids[c * dim + d]) - first;
      sum += offset;
      squares += exact_product(offset, offset);
    }
    const double mean = sum / static_cast<double>(clusters);
    const double variance = squares / static_cast<double>(clusters) - exact_product(mean, mean);
    const double deviation = variance > 0.0 ? sqrt(variance) : 0.0;
    const float chosen = grid_mean(first + mean, deviation, first);
    origin[d] = is_finite(chosen) ? chosen : 0.0f;
  }
  __syncthreads();
  float* shifted = params.shifted + sequence.index * params.clusters * dim;
  for (int64_t i = threadIdx.x; i < clusters * dim; i += blockDim.x) {
    shifted[i] = centroids[i] - origin[i % dim];
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < clusters; c += blockDim.x) {
    const float bias = centroid_bias(params, centroids + c * dim, shifted + c * dim);
    params.bias[sequence.index * params.clusters + c] = bias;
    if (!is_finite(bias)) mark_non_finite(params.flags);
  }
  if (threadIdx.x == 0) {
    params.state[sequence.index] = KMeansState{0, 0, 0.0, 0.0};
  }
}

/// Rows as the assignment reads them.
template <Read kRead>
__global__ void kmeans_pack_kernel(const KMeansParams params) {
  // block: rows (256,dim) -> packed (256,dim)
  const int64_t dim = params.problem.dim;
  const int64_t blocks = divide_up(params.problem.length, kKMeansThreads);
  const KMeansSequence sequence(params, blockIdx.x / blocks);
  const int64_t first = blockIdx.x % blocks * kKMeansThreads;
  const int64_t left = sequence.length - first;
  const int64_t rows = left < kKMeansThreads ? left : kKMeansThreads;
  const float* origin = params.origin + sequence.index * dim;
  const int64_t first_row = sequence.index * params.problem.length + first;
  for (int64_t i = threadIdx.x; i < rows * dim; i += kKMeansThreads) {
    const int64_t row = i / dim;
    const int64_t d = i % dim;
    const float value = element_of<kRead>(params, sequence, first + row, d);
    params.packed[first_row * dim + i] =
        params.cosine()
            ? static_cast<float>(exact_product(double{value}, params.scales[first_row + row]) -
                                 origin[d])
            : value - origin[d];
  }
}

/// The tolerance: a share of the mean of the columns' variances. Sums of a chunk of rows by column;
/// the last block of a sequence adds the chunks up.
template <Read kRead>
__global__ void kmeans_tolerance_kernel(const KMeansParams params) {
  // block: rows (1024,dim) -> sums and squares (dim); the last block: -> 1 tolerance
  uint32_t* scratch = dynamic_shared<uint32_t>();
  const int64_t dim = params.problem.dim;
  const KMeansSequence sequence(params, blockIdx.x / params.chunks);
  const int64_t begin = blockIdx.x % params.chunks * kKMeansChunk;
  const int64_t end =
      begin + kKMeansChunk < sequence.length ? begin + kKMeansChunk : sequence.length;
  const float* origin = params.origin + sequence.index * dim;
  const double* scales = params.scales + sequence.index * params.problem.length;
  double* moments = params.moments + sequence.index * params.chunks * 2 * dim;
  double* own = moments + (blockIdx.x % params.chunks) * 2 * dim;
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const double value = element_of<kRead>(params, sequence, i, d);
      const double offset = (params.cosine() ? exact_product(value, scales[i]) : value) - origin[d];
      sum += offset;
      squares += exact_product(offset, offset);
    }
    own[d] = sum;
    own[dim + d] = squares;
  }
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.chunks),
                       scratch)) {
    return;
  }
  const double rows = static_cast<double>(sequence.length);
  for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t c = 0; c * kKMeansChunk < sequence.length; ++c) {
      sum += moments[2 * c * dim + d];
      squares += moments[(2 * c + 1) * dim + d];
    }
    moments[d] = squares / rows - exact_product(sum / rows, sum / rows);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int64_t d = 0; d < dim; ++d) total += moments[d];
  params.state[sequence.index].tolerance =
      exact_product(params.problem.tolerance, total / static_cast<double>(dim));
}

}  // namespace cluster_attention::cuda
