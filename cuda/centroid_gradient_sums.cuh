#pragma once

// What surrounds the passes of centroid_gradient.cuh:
//
//   find_output_terms   factor_j and offset_j of each centroid
//   merge_query_parts   dq_j = tau times the sum over the parts, in order
//   sum_weight_terms    dw_i = sum over the heads, in order
//
// Precision: products of whole rows in double, the rest float32.

#include "cuda/assignment.cuh"
#include "cuda/centroid_gradient_params.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

constexpr int kCentroidGradientThreads = 256;
constexpr int kCentroidGradientWarps = kCentroidGradientThreads / kWarp;

/// One warp per centroid.
__global__ void __launch_bounds__(kCentroidGradientThreads)
    find_output_terms(const OutputTermsParams params) {
  // output_gradient: (M,E), output: (M,E) -> output_factor, output_offset: (M)
  const AssignmentParams& assignment = params.gradient.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kCentroidGradientWarps + warp_index();
  if (index >= assignment.sequences * assignment.centroids) return;
  const int64_t sequence = index / assignment.centroids;
  const int64_t j = index % assignment.centroids;
  const int64_t batch = sequence / assignment.heads;
  if (j >= assignment.real_centroids(batch)) return;
  const int64_t head = sequence % assignment.heads;
  const Rows gradient(params.gradient.output_gradient, batch, head);
  const float* origin = params.gradient.value_origin;
  const Rows output(params.output, batch, head,
                    origin != nullptr ? origin + batch * assignment.value_dim : nullptr);
  const bool over_inputs = params.gradient.over_inputs;
  double product = 0.0;
  if (over_inputs || params.mean) {
    for (int64_t e = lane_index(); e < assignment.value_dim; e += kWarp) {
      product += static_cast<double>(gradient.element(j, e)) * output.element(j, e);
    }
    product = warp_sum(product);
  }
  // Normalised over its inputs, every centroid that has any has the mass 1.
  const double mass = over_inputs || !params.mean ? 1.0 : params.masses[index];
  const double divisor = params.mean ? mass + params.added_mass : 1.0;
  const double factor = divisor != 0.0 ? 1.0 / divisor : 0.0;
  if (lane_index() > 0) return;
  params.gradient.output_factor[index] = static_cast<float>(factor);
  params.gradient.output_offset[index] =
      static_cast<float>(over_inputs ? product : product * factor);
}

/// One thread per element.
__global__ void __launch_bounds__(kCentroidGradientThreads)
    merge_query_parts(const CentroidGradientParams params) {
  // sums: (B*H,parts,M,D) -> dq: (B,H,M,D)
  const AssignmentParams& assignment = params.assignment;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kCentroidGradientThreads + threadIdx.x;
  if (index >= assignment.sequences * assignment.centroids * assignment.dim) return;
  const int64_t column = index % assignment.dim;
  const int64_t row = index / assignment.dim % assignment.centroids;
  const int64_t sequence = index / assignment.dim / assignment.centroids;
  const int64_t batch = sequence / assignment.heads;
  const int64_t inputs = assignment.real_inputs(batch);
  const int64_t centroids = assignment.real_centroids(batch);
  float value = 0.0f;
  if (row < centroids && inputs > 0) {
    const int64_t place = sequence * assignment.sum_rows + row;
    value = total_of_parts(assignment.sums + place * assignment.dim + column,
                           assignment_parts(inputs, centroids), centroids * assignment.dim) *
            params.scale;
  }
  const GradientRows& query = params.query;
  store_element(query.rows.data, query.storage,
                query.offset(batch, sequence % assignment.heads, row) + column, value);
  if (!is_number(value)) mark_non_finite(assignment.flags);
}

struct WeightSumParams {
  int64_t batch = 0;
  int64_t heads = 1;
  int64_t inputs = 0;
  const float* terms = nullptr;  // (B,H,N)
  float* weights = nullptr;      // (B,N)
  Flags* flags = nullptr;
};

/// One thread per input.
__global__ void __launch_bounds__(kCentroidGradientThreads)
    sum_weight_terms(const WeightSumParams params) {
  // terms: (B,H,N) -> weights: (B,N)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kCentroidGradientThreads + threadIdx.x;
  if (index >= params.batch * params.inputs) return;
  const int64_t first = index / params.inputs * params.heads * params.inputs;
  float sum = 0.0f;
  for (int64_t h = 0; h < params.heads; ++h) {
    sum += params.terms[first + h * params.inputs + index % params.inputs];
  }
  params.weights[index] = sum;
  if (!is_number(sum)) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
