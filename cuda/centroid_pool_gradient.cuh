#pragma once

// §6 Backward of pooling (native/kernels/centroid_pool_gradient.h has the maths): what a step does
// beside the passes of centroid_gradient.cuh, whose queries are the operands of centroid_pool.cuh,
// and whose keys and values are the inputs. G is the gradient by the centroids after a step.
//
// Precision: projections along a row, and norms, in double, the rest float32.

#include "cuda/assignment.cuh"
#include "cuda/centroid_gradient_params.cuh"
#include "cuda/pool_params.cuh"

namespace cluster_attention::cuda {

struct PoolGradientParams {
  PoolParams pool;            // of the step
  Tensor output_gradient;     // (batch,M,d)
  float scale = 0.0f;         // 1 / temperature
  float* gradient = nullptr;  // (batch,M,d), G
  float* origin = nullptr;    // (batch,d), of the values
  float* inputs = nullptr;    // (batch,N,d), sums of the gradients by the inputs
  float* by_key = nullptr;    // (batch,N,d), cosine: the sums by x / |x|
  float* initial = nullptr;   // (batch,M,d), optional result
  GradientRows result;        // (batch,N,d), of the inputs
};

__device__ inline int64_t pool_thread() {
  return static_cast<int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
}

/// G of the real centroids, and an origin amid them. One thread per element.
__global__ void __launch_bounds__(kPoolThreads)
    open_pool_gradient(const PoolGradientParams params) {
  // output_gradient: (batch,M,d), centroids: (batch,M,d) -> gradient: (batch,M,d), origin:
  // (batch,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = pool_thread();
  if (index >= assignment.sequences * assignment.centroids * assignment.dim) return;
  const int64_t d = index % assignment.dim;
  const int64_t j = index / assignment.dim % assignment.centroids;
  const int64_t batch = index / assignment.dim / assignment.centroids;
  const int64_t centroids = assignment.real_centroids(batch);
  const Rows rows(params.output_gradient, batch, 0);
  params.gradient[index] = j < centroids ? rows.element(j, d) : 0.0f;
  if (j > 0) return;
  double sum = 0.0;
  for (int64_t other = 0; other < centroids; ++other) {
    sum += params.pool.centroids[index + other * assignment.dim];
  }
  params.origin[batch * assignment.dim + d] =
      centroids > 0 ? static_cast<float>(sum / static_cast<double>(centroids)) : 0.0f;
}

/// gradient (+)= what the gradient by row / |row| means for the row: nothing along it. By a warp,
/// whose lanes see their own elements alone.
template <typename Element, typename ByUnit, typename Write>
__device__ void unit_row_gradient(int64_t dim, double inverse_norm, const Element& row,
                                  const ByUnit& by_unit, const Write& write) {
  double along = 0.0;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    along += row(d) * inverse_norm * by_unit(d);
  }
  along = warp_sum(along);
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    write(d, (by_unit(d) - along * (row(d) * inverse_norm)) * inverse_norm);
  }
}

/// G before a step from the sums of its parts. One warp per centroid.
__global__ void __launch_bounds__(kPoolThreads) step_pool_back(const PoolGradientParams params) {
  // sums: (parts,M,d), masses: (parts,M), centroids, operands: (M,d) -> gradient: (M,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPoolWarps + warp_index();
  if (index >= assignment.sequences * assignment.centroids) return;
  const int64_t batch = index / assignment.centroids;
  const int64_t j = index % assignment.centroids;
  const int64_t centroids = assignment.real_centroids(batch);
  // Without mass it has kept its value, and so its gradient.
  if (j >= centroids || params.pool.step_masses[index] == 0.0f) return;
  const int64_t dim = assignment.dim;
  const int64_t parts = assignment_parts(assignment.real_inputs(batch), centroids);
  const int64_t row = batch * assignment.sum_rows + j;
  const float* centroid = params.pool.centroids + index * dim;
  const float* operand = params.pool.operands + index * dim;
  float* gradient = params.gradient + index * dim;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    gradient[d] =
        params.scale * total_of_parts(assignment.sums + row * dim + d, parts, centroids * dim);
  }
  if (params.pool.similarity == Similarity::euclidean) {
    // The bias of the scores is -|u - c|^2 / 2.
    const float by_bias = params.scale * total_of_parts(assignment.masses + row, parts, centroids);
    for (int64_t d = lane_index(); d < dim; d += kWarp) gradient[d] -= by_bias * operand[d];
  }
  if (params.pool.similarity != Similarity::cosine) return;
  const double inverse = warp_inverse_norm(dim, [=](int64_t d) { return centroid[d]; });
  unit_row_gradient(
      dim, inverse, [=](int64_t d) { return centroid[d]; }, [=](int64_t d) { return gradient[d]; },
      [=](int64_t d, double value) { gradient[d] = static_cast<float>(value); });
}

/// A hard assignment: every input takes a share of its centroid's G. One thread per element.
__global__ void __launch_bounds__(kPoolThreads) spread_pool_back(const PoolGradientParams params) {
  // labels: (N), masses: (M), gradient: (M,d) -> inputs: (N,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = pool_thread();
  if (index >= assignment.sequences * assignment.inputs * assignment.dim) return;
  const int64_t input = index / assignment.dim;
  const int64_t batch = input / assignment.inputs;
  if (input % assignment.inputs >= assignment.real_inputs(batch)) return;
  const int64_t row = batch * assignment.centroids + assignment.labels[input];
  params.inputs[index] +=
      params.gradient[row * assignment.dim + index % assignment.dim] / params.pool.step_masses[row];
}

/// And nothing is left of that. One thread per element.
__global__ void __launch_bounds__(kPoolThreads) clear_pool_back(const PoolGradientParams params) {
  // masses: (M) -> gradient: (M,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = pool_thread();
  if (index >= assignment.sequences * assignment.centroids * assignment.dim) return;
  const int64_t row = index / assignment.dim;
  const bool real =
      row % assignment.centroids < assignment.real_centroids(row / assignment.centroids);
  if (real && params.pool.step_masses[row] != 0.0f) params.gradient[index] = 0.0f;
}

/// What is left of G belongs to the start. One thread per element.
__global__ void __launch_bounds__(kPoolThreads)
    close_pool_centroids(const PoolGradientParams params) {
  // gradient: (batch,M,d) -> initial: (batch,M,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = pool_thread();
  if (index >= assignment.sequences * assignment.centroids * assignment.dim) return;
  const float value = params.gradient[index];
  if (params.initial != nullptr) params.initial[index] = value;
  if (!is_number(value)) mark_non_finite(assignment.flags);
}

/// The gradients by the inputs as they are stored; 0 for padding. One warp per input.
__global__ void __launch_bounds__(kPoolThreads) close_pool_inputs(const PoolGradientParams params) {
  // inputs, by_key: (N,d) -> result: (N,d)
  const AssignmentParams& assignment = params.pool.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPoolWarps + warp_index();
  if (index >= assignment.sequences * assignment.inputs) return;
  const int64_t batch = index / assignment.inputs;
  const int64_t input = index % assignment.inputs;
  const int64_t dim = assignment.dim;
  const float* sums = params.inputs + index * dim;
  bool bad = false;
  const auto write = [&](int64_t d, double value) {
    const float sum = static_cast<float>(sums[d] + value);
    store_element(params.result.rows.data, params.result.storage, index * dim + d, sum);
    bad |= !is_number(sum);
  };
  if (params.by_key != nullptr && input < assignment.real_inputs(batch)) {
    const Rows rows(assignment.value, batch, 0);
    const float* by_key = params.by_key + index * dim;
    unit_row_gradient(
        dim, params.pool.input_scale[index], [&](int64_t d) { return rows.element(input, d); },
        [=](int64_t d) { return by_key[d]; }, write);
  } else {
    for (int64_t d = lane_index(); d < dim; d += kWarp) write(d, 0.0);
  }
  if (bad) mark_non_finite(assignment.flags);
}

}  // namespace cluster_attention::cuda
