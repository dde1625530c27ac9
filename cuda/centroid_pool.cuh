#pragma once

// §6 Pooling without learned weights: T steps of
//
//   u_j <- sum_i a_ji x_i / sum_i a_ji,   a_ji = softmax over j of similarity(u_j, x_i) /
//   temperature
//
// and the hard assignment in the place of the softmax as its limit. The sums are those of
// assignment.cuh; here are the operands whose products are the similarities, up to a constant of
// the input, which a softmax or an argmax over the centroids does not see:
//
//   cosine      (u / |u| - c) . x  / |x|
//   dot         (u - c) . x
//   euclidean   (u - c) . (x - c) - |u - c|^2 / 2
//
// c is a common origin near the starting centroids. It changes no result but the rounding: without
// it, what tells centroids of data far from 0 apart is lost in the digits that they share.
// Precision: norms, means of the origin and squared lengths in double, the rest float32.

#include "cuda/assignment.cuh"
#include "cuda/pool_params.cuh"
#include "native/core/coarse_rounding.h"

namespace cluster_attention::cuda {

/// 1 / |u| for the cosine, 1 otherwise; by a warp.
__device__ inline double centroid_factor(const PoolParams& params, const float* centroid) {
  if (params.similarity != Similarity::cosine) return 1.0;
  return warp_inverse_norm(params.assignment.dim, [=](int64_t d) { return centroid[d]; });
}

/// Operand of a centroid, and what the caller gets of it; by a warp, which sees its row.
__device__ inline void open_centroid(const PoolParams& params, int64_t batch, int64_t j) {
  const int64_t dim = params.assignment.dim;
  const int64_t row = batch * params.assignment.centroids + j;
  const float* centroid = params.centroids + row * dim;
  const float* origin = params.origin + batch * dim;
  const double factor = centroid_factor(params, centroid);
  double squared = 0.0;
  bool bad = false;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    const auto operand = static_cast<float>(centroid[d] * factor - origin[d]);
    params.operands[row * dim + d] = operand;
    squared += static_cast<double>(operand) * operand;
    bad |= !is_number(centroid[d]);
    if (params.output != params.centroids) {
      store_element(params.output, params.storage, row * dim + d, centroid[d]);
    }
  }
  squared = warp_sum(squared);
  if (params.bias != nullptr && lane_index() == 0) {
    params.bias[row] = static_cast<float>(-0.5 * squared);
  }
  if (bad) mark_non_finite(params.assignment.flags);
}

/// Inverse norms of the inputs, for the cosine. One warp per input.
__global__ void __launch_bounds__(kPoolThreads) pool_scales(const PoolParams params) {
  // inputs: (N,d) -> input_scale: (N)
  const int64_t inputs = params.assignment.inputs;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPoolWarps + warp_index();
  if (index >= params.assignment.sequences * inputs) return;
  const int64_t batch = index / inputs;
  const int64_t input = index % inputs;
  if (input >= params.assignment.real_inputs(batch)) return;
  const Rows rows(params.assignment.value, batch, 0);
  const double scale =
      warp_inverse_norm(params.assignment.dim, [&](int64_t d) { return rows.element(input, d); });
  if (lane_index() == 0) params.input_scale[index] = static_cast<float>(scale);
}

/// The origin, and the operands of the starting centroids. One block per batch entry.
__global__ void __launch_bounds__(kPoolThreads) open_pool(const PoolParams params) {
  // centroids: (M,d) -> origin: (d), operands: (M,d), bias: (M)
  const int64_t batch = blockIdx.x;
  const int64_t dim = params.assignment.dim;
  const int64_t first = batch * params.assignment.centroids;
  const int64_t centroids = params.assignment.real_centroids(batch);
  for (int64_t j = warp_index(); j < centroids; j += kPoolWarps) {
    const double factor = centroid_factor(params, params.centroids + (first + j) * dim);
    if (lane_index() == 0) params.inverse_norm[first + j] = factor;
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < dim; d += kPoolThreads) {
    double sum = 0.0;
    double lowest = HUGE_VAL;
    double highest = -HUGE_VAL;
    for (int64_t j = 0; j < centroids; ++j) {
      const double element =
          params.centroids[(first + j) * dim + d] * params.inverse_norm[first + j];
      sum += element;
      lowest = fmin(lowest, element);
      highest = fmax(highest, element);
    }
    const double mean = sum / static_cast<double>(centroids);
    const double spread = fmax(highest - mean, mean - lowest);
    params.origin[batch * dim + d] = centroids > 0 ? round_coarsely(mean, spread) : 0.0f;
  }
  __syncthreads();
  for (int64_t j = warp_index(); j < centroids; j += kPoolWarps) open_centroid(params, batch, j);
}

/// u_j <- its mean; without mass it stays. One warp per centroid.
__global__ void __launch_bounds__(kPoolThreads) update_pool(const PoolParams params) {
  // sums: (parts,M,d), masses: (parts,M) -> centroids: (M,d), operands: (M,d)
  const AssignmentParams& assignment = params.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPoolWarps + warp_index();
  if (index >= assignment.sequences * assignment.centroids) return;
  const int64_t batch = index / assignment.centroids;
  const int64_t j = index % assignment.centroids;
  const int64_t centroids = assignment.real_centroids(batch);
  if (j >= centroids) return;
  const int64_t parts = assignment_parts(assignment.real_inputs(batch), centroids);
  const int64_t row = batch * assignment.sum_rows + j;
  const float mass = total_of_parts(assignment.masses + row, parts, centroids);
  if (params.step_masses != nullptr && lane_index() == 0) params.step_masses[index] = mass;
  if (mass == 0.0f && params.before == params.centroids) return;
  for (int64_t d = lane_index(); d < assignment.dim; d += kWarp) {
    const int64_t place = index * assignment.dim + d;
    if (mass == 0.0f) {
      params.centroids[place] = params.before[place];
      continue;
    }
    const float sum = total_of_parts(assignment.sums + row * assignment.dim + d, parts,
                                     centroids * assignment.dim);
    params.centroids[place] = sum / mass;
  }
  __syncwarp();
  open_centroid(params, batch, j);
}

/// Masses of the centroids returned; 0 past the real ones. One thread per centroid.
__global__ void __launch_bounds__(kPoolThreads) close_pool(const PoolParams params) {
  // masses: (parts,M) -> masses: (M)
  const AssignmentParams& assignment = params.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (index >= assignment.sequences * assignment.centroids) return;
  const int64_t batch = index / assignment.centroids;
  const int64_t j = index % assignment.centroids;
  const int64_t centroids = assignment.real_centroids(batch);
  float mass = 0.0f;
  if (j < centroids) {
    mass = total_of_parts(assignment.masses + batch * assignment.sum_rows + j,
                          assignment_parts(assignment.real_inputs(batch), centroids), centroids);
  }
  params.masses[index] = mass;
  if (!is_number(mass)) mark_non_finite(assignment.flags);
}

}  // namespace cluster_attention::cuda
