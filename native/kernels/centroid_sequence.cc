#include "native/kernels/centroid_sequence.h"

#include <algorithm>
#include <cmath>

#include "native/core/softmax_state.h"
#include "native/kernels/prefetch.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

CentroidSequence centroid_sequence(const CentroidAttentionProblem& problem,
                                   const ActiveInputs& active, int64_t sequence) {
  const AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  const int64_t batch = sequence / shape.heads;
  const int64_t head = sequence % shape.heads;
  CentroidSequence result;
  result.batch = batch;
  result.head = head;
  result.centroids = real_length(inputs.query_lengths, batch, shape.query_length);
  result.inputs = active.count(batch);
  result.index = active.index(batch);
  result.weights = active.weights(batch);
  result.query = inputs.query.sequence(batch, head);
  result.query_stride = inputs.query.row_stride;
  result.key = inputs.key.sequence(batch, head);
  result.key_stride = inputs.key.row_stride;
  result.value = inputs.value.sequence(batch, head);
  result.value_stride = inputs.value.row_stride;
  result.output = problem.output.sequence(batch, head);
  result.output_stride = problem.output.row_stride;
  if (problem.labels != nullptr) result.labels = problem.labels + sequence * shape.key_length;
  if (problem.masses != nullptr) result.masses = problem.masses + sequence * shape.query_length;
  if (problem.logsumexp != nullptr) {
    result.logsumexp = problem.logsumexp + sequence * shape.query_length;
  }
  return result;
}

int64_t input_parts(int64_t inputs, int64_t centroids) {
  constexpr int64_t kInputsPerPart = 512;
  constexpr int64_t kMaximumParts = 8;
  const int64_t parts =
      std::min(inputs / kInputsPerPart, 2 * inputs / std::max<int64_t>(centroids, 1));
  return std::clamp<int64_t>(parts, 1, kMaximumParts);
}

int64_t maximum_input_parts(const CentroidAttentionProblem& problem, const ActiveInputs& active) {
  const AttentionInputs& inputs = problem.inputs;
  int64_t parts = 1;
  for (int64_t b = 0; b < inputs.shape.batch; ++b) {
    const int64_t centroids = real_length(inputs.query_lengths, b, inputs.shape.query_length);
    parts = std::max(parts, input_parts(active.count(b), centroids));
  }
  return parts;
}

void pack_inputs(const float* rows, int64_t row_stride, const int32_t* index, int64_t first,
                 int64_t columns, int64_t dim, float* packed) {
  if (index != nullptr) {
    simd().pack(rows, row_stride, index + first, columns, dim, packed);
  } else {
    simd().pack(rows + first * row_stride, row_stride, nullptr, columns, dim, packed);
  }
}

void prefetch_rows(const float* rows, int64_t row_stride, int64_t count, int64_t dim) {
  for (int64_t i = 0; i < count; ++i) prefetch_row(rows + i * row_stride, dim);
}

void negate(float* packed, int64_t count) {
  for (int64_t i = 0; i < count; ++i) packed[i] = -packed[i];
}

double log_sum_exp(float maximum, float sum) {
  return (static_cast<double>(maximum) + std::log2(static_cast<double>(sum))) * kLn2;
}

void sum_objective(const double* partial, int64_t batch, int64_t heads, int64_t parts,
                   double* objective) {
  for (int64_t b = 0; b < batch; ++b) {
    objective[b] = 0.0;
    for (int64_t i = 0; i < heads * parts; ++i) objective[b] += partial[b * heads * parts + i];
  }
}

}  // namespace cluster_attention::kernels
