#pragma once

// Lloyd's K-means of rows under the Euclidean distance or the cosine, as native/kernels/lloyd.cc.
//
// Method, per iteration: (1) 128 rows at a time times all centroids gives the scores
// x·c - |c|²/2, whose largest is the nearest centroid (tie: lowest cluster); the labels of every
// part are counted; the last block of a sequence decides whether to go on, and lays out the sort.
// (2) the rows are placed by label; (3) a block per centroid adds its members in index order.
// Precision: scores are fp32, one fmaf chain each in index order (fma_tile.cuh); means in double.
// Both are the CPU's bits, so that the labels are. Limits: any length and number of clusters; any
// dim whose sums fit in shared memory, 16 bytes each.

#include "cuda/counting_sort.cuh"
#include "cuda/exact.cuh"
#include "cuda/fma_tile.cuh"
#include "cuda/kmeans_params.cuh"
#include "cuda/member_sums.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

struct KMeansStep {
  KMeansParams kmeans;
  SortParams sort;  // of problem.labels
};

struct AssignLayout {
  int64_t tile, scratch, bytes;
};
CA_HOST_DEVICE inline AssignLayout assign_layout() {
  SharedLayout parts;
  const int64_t tile = parts.add<FmaTileStorage>(1);
  const int64_t scratch = parts.add<int32_t>(kWarp);
  return {tile, scratch, parts.bytes()};
}

/// Best centroids of the 8 rows of a thread.
struct NearestRows {
  float best[8];
  int32_t centroid[8];
};

/// The nearest centroids of 128 rows; the 16 threads that share rows get the same result.
__device__ inline NearestRows nearest_rows(const KMeansParams& params,
                                           const KMeansSequence& sequence, FmaTileStorage& tile,
                                           int64_t first, int rows) {
  const int64_t dim = params.problem.dim;
  const float* packed = params.packed + (sequence.index * params.problem.length + first) * dim;
  const float* shifted = params.shifted + sequence.index * params.clusters * dim;
  const float* bias = params.bias + sequence.index * params.clusters;
  const int x = static_cast<int>(threadIdx.x) % 16;
  NearestRows nearest;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    nearest.best[i] = __int_as_float(static_cast<int>(0xff800000u));  // -Inf
    nearest.centroid[i] = 0;
  }
  for (int64_t c = 0; c < sequence.clusters; c += kFmaColumns) {
    FmaSums sum;
    fma_product(
        tile, dim, [&](int row, int64_t d) { return row < rows ? packed[row * dim + d] : 0.0f; },
        [&](int column, int64_t d) {
          return c + column < sequence.clusters ? shifted[(c + column) * dim + d] : 0.0f;
        },
        sum);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t centroid = c + x + 16 * j;
      if (centroid >= sequence.clusters) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float score = sum[i][j] + bias[centroid];
        if (score > nearest.best[i]) {
          nearest.best[i] = score;
          nearest.centroid[i] = static_cast<int32_t>(centroid);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) {
      const float best = shuffle_xor(nearest.best[i], mask);
      const int32_t centroid = shuffle_xor(nearest.centroid[i], mask);
      const bool better =
          best > nearest.best[i] || (best == nearest.best[i] && centroid < nearest.centroid[i]);
      nearest.best[i] = better ? best : nearest.best[i];
      nearest.centroid[i] = better ? centroid : nearest.centroid[i];
    }
  }
  return nearest;
}

/// The end of an assignment, in the last block of a sequence.
__device__ inline void finish_assignment(const KMeansStep& step, const KMeansSequence& sequence,
                                         int32_t* scratch) {
  const KMeansParams& params = step.kmeans;
  KMeansState& state = params.state[sequence.index];
  const bool settled =
      params.iteration > 0 && params.problem.tolerance > 0.0 && state.movement <= state.tolerance;
  const bool last = params.iteration == params.problem.max_iterations;
  const bool done = state.changed == 0 || last || settled;
  scan_label_counts(step.sort, sequence.index, scratch);
  __syncthreads();
  if (threadIdx.x == 0) {
    state.changed = 0;
    state.done = done ? 1 : 0;
    if (done) atomicAdd(&params.flags->settled, 1u);
    if (done && params.problem.iterations != nullptr) {
      params.problem.iterations[sequence.index] = static_cast<int32_t>(params.iteration);
    }
  }
  if (!done) return;
  const int32_t* offsets =
      step.sort.problem.offsets + sequence.index * (step.sort.problem.clusters + 1);
  for (int64_t c = threadIdx.x; c < sequence.clusters; c += blockDim.x) {
    params.problem.counts[sequence.index * params.problem.clusters + c] =
        offsets[c + 1] - offsets[c];
  }
}

template <typename = void>
__global__ void __launch_bounds__(kFmaThreads) kmeans_assign_kernel(const KMeansStep step) {
  // block: rows (part,dim) x centroids (clusters,dim) -> labels (part), counts (clusters)
  const KMeansParams& params = step.kmeans;
  const AssignLayout layout = assign_layout();
  FmaTileStorage& tile = *dynamic_shared<FmaTileStorage>(layout.tile);
  int32_t* scratch = dynamic_shared<int32_t>(layout.scratch);
  const KMeansSequence sequence(params, blockIdx.x / step.sort.parts);
  const int64_t part = blockIdx.x % step.sort.parts;
  if (params.state[sequence.index].done != 0) return;
  int32_t* counts = step.sort.counts + blockIdx.x * params.clusters;
  for (int64_t c = threadIdx.x; c < params.clusters; c += blockDim.x) counts[c] = 0;
  __syncthreads();
  const Range range = rows_of_part(step.sort, part, sequence.length);
  const int x = static_cast<int>(threadIdx.x) % 16;
  const int y = static_cast<int>(threadIdx.x) / 16;
  bool changed = false;
  bool bad = false;
  for (int64_t first = range.begin; first < range.end; first += kFmaRows) {
    const int64_t left = range.end - first;
    const int rows = static_cast<int>(left < kFmaRows ? left : kFmaRows);
    const NearestRows nearest = nearest_rows(params, sequence, tile, first, rows);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = 8 * y + i;
      if (x != i || row >= rows) continue;
      const int64_t place = sequence.index * params.problem.length + first + row;
      // A row that holds NaN or -Inf beats no centroid and keeps the -Inf; one with +Inf shows it.
      bad = bad || !is_finite(nearest.best[i]);
      // A row of zeros has cosine 0 with every centroid.
      const bool zero = params.cosine() && params.scales[place] == 0.0;
      const int32_t label = zero ? 0 : nearest.centroid[i];
      changed = changed || params.problem.labels[place] != label;
      params.problem.labels[place] = label;
      atomicAdd(&counts[label], 1);
    }
  }
  if (bad) mark_non_finite(params.flags);
  if (any(changed) && lane_index() == 0) atomicOr(&params.state[sequence.index].changed, 1);
  if (last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(step.sort.parts),
                      reinterpret_cast<uint32_t*>(scratch))) {
    finish_assignment(step, sequence, scratch);
  }
}

struct UpdateLayout {
  int64_t sums, terms, scratch, bytes;
};
CA_HOST_DEVICE inline UpdateLayout update_layout(int64_t dim) {
  SharedLayout parts;
  const int64_t sums = parts.add<double>(dim);
  const int64_t terms = parts.add<double>(dim);
  const int64_t scratch = parts.add<double>(4);
  return {sums, terms, scratch, parts.bytes()};
}

/// Summed movement of the centroids, in index order, by the last block of a sequence.
__device__ inline void add_movements(const KMeansParams& params, const KMeansSequence& sequence) {
  if (threadIdx.x != 0) return;
  const double* movement = params.movement + sequence.index * params.clusters;
  double total = 0.0;
  for (int64_t c = 0; c < sequence.clusters; ++c) total += movement[c];
  params.state[sequence.index].movement = total;
}

template <Read kRead>
__global__ void kmeans_update_kernel(const KMeansStep step) {
  // block: members (count,dim) -> centroid (dim)
  const KMeansParams& params = step.kmeans;
  const KMeansProblem& problem = params.problem;
  const int64_t dim = problem.dim;
  const UpdateLayout layout = update_layout(dim);
  double* sums = dynamic_shared<double>(layout.sums);
  double* terms = dynamic_shared<double>(layout.terms);
  double* scratch = dynamic_shared<double>(layout.scratch);
  const KMeansSequence sequence(params, blockIdx.x / params.clusters);
  const int64_t c = blockIdx.x % params.clusters;
  if (params.state[sequence.index].done != 0) return;
  const int32_t* offsets = step.sort.problem.offsets + sequence.index * (params.clusters + 1);
  const int64_t count = c < sequence.clusters ? offsets[c + 1] - offsets[c] : 0;
  bool moves = count > 0;
  double divisor = static_cast<double>(count);
  if (moves) {
    const double* scales =
        params.cosine() ? params.scales + sequence.index * problem.length : nullptr;
    const int32_t* members = step.sort.problem.order + sequence.index * problem.length + offsets[c];
    for (int64_t first = warp_index() * kWarp; first < dim; first += blockDim.x) {
      const int64_t d = first + lane_index();
      const double sum =
          sum_listed<kRead>(problem.inputs.data, sequence.base, problem.inputs.row_stride, members,
                            count, scales, d < dim ? d : -1);
      if (d < dim) sums[d] = sum;
    }
    __syncthreads();
    if (params.cosine()) {
      divisor = sqrt(block_sum_terms(dim, scratch,
                                     [=](int64_t d) { return exact_product(sums[d], sums[d]); }));
      moves = !(divisor <= kZeroMean * static_cast<double>(count));  // NaN moves
    }
  }
  double movement = 0.0;
  if (moves) {
    float* centroid = problem.centroids + (sequence.index * problem.clusters + c) * dim;
    float* shifted = params.shifted + (sequence.index * params.clusters + c) * dim;
    const float* origin = params.origin + sequence.index * dim;
    for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) {
      const double old = centroid[d];
      const float moved = static_cast<float>(sums[d] / divisor);
      if (!is_finite(moved)) mark_non_finite(params.flags);
      centroid[d] = moved;
      shifted[d] = moved - origin[d];
      terms[d] = moved - old;
      sums[d] = shifted[d];
    }
    __syncthreads();
    const auto square = [](const double* values) {
      return [values](int64_t d) { return exact_product(values[d], values[d]); };
    };
    movement = block_sum_terms(dim, scratch, square(terms));
    double distance = block_sum_terms(dim, scratch, square(sums));
    if (params.cosine()) {
      for (int64_t d = threadIdx.x; d < dim; d += blockDim.x) terms[d] = centroid[d];
      __syncthreads();
      if (block_sum_terms(dim, scratch, square(terms)) == 0.0) distance += 1.0;
    }
    if (threadIdx.x == 0) {
      const auto bias = static_cast<float>(-0.5 * distance);
      params.bias[sequence.index * params.clusters + c] = bias;
      if (!is_finite(bias)) mark_non_finite(params.flags);
    }
  }
  if (problem.tolerance <= 0.0) return;
  if (threadIdx.x == 0) params.movement[blockIdx.x] = movement;
  if (last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.clusters),
                      reinterpret_cast<uint32_t*>(scratch))) {
    add_movements(params, sequence);
  }
}

/// Squared distance of row i to its centroid, or half of it and what zero vectors lack (1 - cos).
template <Read kRead>
__device__ double row_inertia(const KMeansParams& params, const KMeansSequence& sequence,
                              int64_t i) {
  const KMeansProblem& problem = params.problem;
  const int64_t dim = problem.dim;
  const int64_t place = sequence.index * problem.length + i;
  const float* centroid =
      problem.centroids + (sequence.index * problem.clusters + problem.labels[place]) * dim;
  const double scale = params.cosine() ? params.scales[place] : 1.0;
  bool zero_centroid = true;
  const double distance = sum_terms(dim, [&](int64_t d) {
    zero_centroid = zero_centroid && centroid[d] == 0.0f;
    const double value = element_of<kRead>(params, sequence, i, d);
    const double difference = exact_product(value, scale) - centroid[d];
    return exact_product(difference, difference);
  });
  if (!params.cosine()) return distance;
  return 0.5 * (distance + (scale == 0.0 ? 1.0 : 0.0) + (zero_centroid ? 1.0 : 0.0));
}

/// Sum of the inertia of all rows: a chunk of rows in index order, then the chunks.
template <Read kRead>
__global__ void kmeans_inertia_kernel(const KMeansParams params) {
  // block: rows (1024,dim) -> 1 sum; the last block: sums (chunks) -> inertia
  double* terms = dynamic_shared<double>();  // (kKMeansThreads)
  const KMeansSequence sequence(params, blockIdx.x / params.chunks);
  const int64_t begin = blockIdx.x % params.chunks * kKMeansChunk;
  double sum = 0.0;  // of thread 0
  for (int64_t first = begin; first < begin + kKMeansChunk && first < sequence.length;
       first += kKMeansThreads) {
    const int64_t i = first + threadIdx.x;
    terms[threadIdx.x] = i < sequence.length ? row_inertia<kRead>(params, sequence, i) : 0.0;
    __syncthreads();
    for (int t = 0; threadIdx.x == 0 && t < kKMeansThreads; ++t) sum += terms[t];
    __syncthreads();
  }
  if (threadIdx.x == 0) params.chunk_sums[blockIdx.x] = sum;
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.chunks),
                       reinterpret_cast<uint32_t*>(terms))) {
    return;
  }
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int64_t c = 0; c < params.chunks; ++c) {
    total += params.chunk_sums[sequence.index * params.chunks + c];
  }
  params.problem.inertia[sequence.index] = total;
}

}  // namespace cluster_attention::cuda
