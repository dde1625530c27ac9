#pragma once

// §6 Centroid attention (Wu, Liu and Liu 2021), beyond the sums of assignment.cuh:
//
//   merge_over_centroids      output_j = sum over the parts (or the mean: / (r_j + 1e-6))
//   merge_over_inputs         the same of over_inputs.cuh, the softmax states joined in order
//   sum_objective             objective of each batch entry, in double
//
// Weights multiply the exponentials; an input of weight 0 is never read. float32 accumulation.

#include "cuda/assignment.cuh"
#include "native/core/weighted_sums.h"

namespace cluster_attention::cuda {

struct CentroidMergeParams {
  AssignmentParams assignment;         // sizes, lengths, sums, masses
  const float* row_maximum = nullptr;  // of over_inputs_pass
  const float* row_sum = nullptr;
  bool mean = false;
  OutputRows output;  // (B,H,M,E)
  Storage storage = Storage::float32;
  float* masses = nullptr;      // (B*H,M), optional result
  float* logsumexp = nullptr;   // (B*H,M), optional result
  float* label_bias = nullptr;  // (B*H,M), optional: -log-sum-exp
  double* objective = nullptr;  // (B*H,M), optional: log-sum-exps, 0 for a row without inputs
};

constexpr int kMergeThreads = 256;

/// merge_over_centroids sums the parts in interleaved series, which are then added in order.
constexpr int kMergeSeries = 4;
constexpr int kMergeColumns = kMergeThreads / kMergeSeries;

/// Its blocks of a row.
CA_HOST_DEVICE inline int64_t merge_column_blocks(int64_t value_dim) {
  return (value_dim + kMergeColumns - 1) / kMergeColumns;
}

/// An element of the output.
struct MergePlace {
  int64_t sequence;
  int64_t row;
  int64_t column;
  int64_t batch;
  int64_t parts;  // 0: the row is padded, or has no inputs
  int64_t centroids;
  int64_t sum;  // row of the first part's sums

  __device__ MergePlace(const AssignmentParams& params, int64_t sequence_row, int64_t at)
      : sequence(sequence_row / params.centroids),
        row(sequence_row % params.centroids),
        column(at) {
    batch = sequence / params.heads;
    centroids = params.real_centroids(batch);
    const int64_t inputs = params.real_inputs(batch);
    parts = row < centroids && inputs > 0 ? assignment_parts(inputs, centroids) : 0;
    sum = sequence * params.sum_rows + row;
  }
};

__device__ inline int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline void store_output(const CentroidMergeParams& params, const MergePlace& place,
                                    float value) {
  const int64_t head = place.sequence % params.assignment.heads;
  const int64_t index = place.batch * params.output.batch_stride +
                        head * params.output.head_stride + place.row * params.output.row_stride +
                        place.column;
  store_element(params.output.data, params.storage, index, value);
  if (!is_number(value)) mark_non_finite(params.assignment.flags);
}

/// Sum over the parts of one element in the order of the series, by threads of all series.
/// `exchange`: one value per thread.
__device__ inline float total_of_series(const float* values, int64_t parts, int64_t stride,
                                        float* exchange) {
  const int column = static_cast<int>(threadIdx.x) % kMergeColumns;
  float sum = 0.0f;
#pragma unroll 16  // loads do not wait for the sum
  for (int64_t part = static_cast<int64_t>(threadIdx.x) / kMergeColumns; part < parts;
       part += kMergeSeries) {
    sum += values[part * stride];
  }
  exchange[threadIdx.x] = sum;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMergeSeries; ++i) total += exchange[i * kMergeColumns + column];
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kMergeThreads)
    merge_over_centroids(const CentroidMergeParams params) {
  // sums: (B*H,parts,M,E), masses: (B*H,parts,M) -> output: (B,H,M,E), masses: (B*H,M)
  const AssignmentParams& assignment = params.assignment;
  float* exchange = dynamic_shared<float>();
  const int64_t column_blocks = merge_column_blocks(assignment.value_dim);
  const int64_t row = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kMergeColumns + threadIdx.x % kMergeColumns;
  const MergePlace place(assignment, row, column);
  const bool mine = column < assignment.value_dim;
  float value =
      total_of_series(assignment.sums + place.sum * assignment.value_dim + (mine ? column : 0),
                      place.parts, place.centroids * assignment.value_dim, exchange);
  float mass = 0.0f;
  if (assignment.masses != nullptr) {
    mass = total_of_series(assignment.masses + place.sum, place.parts, place.centroids, exchange);
    if (params.mean) value *= mean_factor(mass);
  }
  if (!mine || threadIdx.x >= kMergeColumns) return;
  if (params.masses != nullptr && column == 0) params.masses[row] = mass;
  if (!is_number(mass)) mark_non_finite(assignment.flags);
  store_output(params, place, value);
}

__global__ void __launch_bounds__(kMergeThreads)
    merge_over_inputs(const CentroidMergeParams params) {
  // sums: (B*H,parts,M,E), states: (B*H,parts,M) -> output: (B,H,M,E)
  const AssignmentParams& assignment = params.assignment;
  const int64_t index = thread_of_grid();
  if (index >= assignment.sequences * assignment.centroids * assignment.value_dim) return;
  const MergePlace place(assignment, index / assignment.value_dim, index % assignment.value_dim);
  float maximum = -INFINITY;
  float sum = 0.0f;
  float value = 0.0f;
#pragma unroll 8  // loads do not wait for the sums
  for (int64_t part = 0; part < place.parts; ++part) {
    const int64_t row = place.sum + part * place.centroids;
    const float joint = fmaxf(maximum, params.row_maximum[row]);
    const float mine = rescale(maximum, joint, assignment.exponent);
    const float other = rescale(params.row_maximum[row], joint, assignment.exponent);
    maximum = joint;
    sum = sum * mine + params.row_sum[row] * other;
    value = value * mine + assignment.sums[row * assignment.value_dim + place.column] * other;
  }
  // Every assignment sums to 1 (NaN stays NaN), so the mean divides by a constant.
  const float mean = params.mean ? 1.0f / (1.0f + 1e-6f) : 1.0f;
  store_output(params, place, value * share_factor(sum) * mean);
  if (place.column > 0) return;
  const int64_t centroid = place.sequence * assignment.centroids + place.row;
  const bool none = sum == 0.0f;
  const double logsumexp = none ? -INFINITY : log_sum_exp(maximum, assignment.exponent, sum);
  if (params.masses != nullptr) params.masses[centroid] = none ? 0.0f : (sum == sum ? 1.0f : sum);
  if (params.logsumexp != nullptr) params.logsumexp[centroid] = static_cast<float>(logsumexp);
  if (params.label_bias != nullptr) params.label_bias[centroid] = -static_cast<float>(logsumexp);
  if (params.objective != nullptr) params.objective[centroid] = none ? 0.0 : logsumexp;
}

struct ObjectiveParams {
  AssignmentParams assignment;
  const double* terms = nullptr;  // (B*H,stride)
  int64_t stride = 0;
  int64_t count = -1;           // of each sequence; -1: one per part, or per tile of inputs
  double* objective = nullptr;  // (B)
};

constexpr int kObjectiveThreads = 256;

__global__ void __launch_bounds__(kObjectiveThreads) sum_objective(const ObjectiveParams params) {
  // terms: (H,count) -> objective: (1), one block per batch entry
  const AssignmentParams& assignment = params.assignment;
  const int64_t batch = blockIdx.x;
  const int64_t inputs = assignment.real_inputs(batch);
  const int64_t centroids = assignment.real_centroids(batch);
  int64_t count = params.count;
  if (count < 0) {
    count = centroids > kTile ? tiles_of(assignment.inputs) : 0;
    if (centroids > 0 && centroids <= kTile && inputs > 0) {
      count = assignment_parts(inputs, centroids);
    }
  }
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < assignment.heads * count; i += kObjectiveThreads) {
    const int64_t sequence = batch * assignment.heads + i / count;
    sum += params.terms[sequence * params.stride + i % count];
  }
  sum = block_sum(sum, dynamic_shared<double>());
  if (threadIdx.x == 0) params.objective[batch] = sum;
}

}  // namespace cluster_attention::cuda
