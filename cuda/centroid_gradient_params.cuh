#pragma once

// What the kernels of the backward of centroid attention read and write.

#include "cuda/assignment_params.cuh"
#include "native/core/softmax_state.h"

namespace cluster_attention::cuda {

/// Gradients (B,H,rows,columns) in some storage; null data: not wanted.
struct GradientRows {
  OutputRows rows;
  Storage storage = Storage::float32;

  CA_HOST_DEVICE bool wanted() const { return rows.data != nullptr; }
  CA_HOST_DEVICE int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return batch * rows.batch_stride + head * rows.head_stride + row * rows.row_stride;
  }
};

struct CentroidGradientParams {
  /// Of the forward: sizes, operands, lengths, the form of the scores, weights. Here `maximum` and
  /// `factor` (1 / sum) are those of each input's softmax, `sums` (B*H,sum_rows,D) and `masses`
  /// (B*H,sum_rows) are sum_i dz_ji k_i and sum_i dz_ji of the parts.
  AssignmentParams assignment;
  Tensor output_gradient;  // g (B,H,M,E)
  /// Subtracted from the values and from the offsets: what they share is lost in no digits.
  const float* value_origin = nullptr;  // (B,E)
  bool over_inputs = false;
  float scale = 1.0f;  // tau
  /// Heads that share keys and values, and the gradients by these: one block sums over them.
  int64_t group = 1;
  bool with_changes = false;  // x and dz are wanted, not the shares alone
  bool with_query = false;    // dq is wanted

  float* output_factor = nullptr;    // (B*H,M): ĝ_j = factor_j g_j
  float* output_offset = nullptr;    // (B*H,M)
  const float* logsumexp = nullptr;  // (B*H,M), over the inputs
  float* total = nullptr;            // (B*H,N), over the centroids: sum_j p_ji x_ji
  bool all_statistics = false;       // of sequences with a single tile of centroids, too

  GradientRows query;
  GradientRows key;
  GradientRows value;
  float* weight_terms = nullptr;  // (B*H,N): what each head adds to the gradients by the weights
  bool accumulate = false;        // to the gradients by key and value, which are float32 then
  /// In shared memory, of each of the two operands of a block's rows; 0: one for both.
  int row_tiles = 1;
};

struct OutputTermsParams {
  CentroidGradientParams gradient;
  Tensor output;                  // (B,H,M,E), of the forward
  const float* masses = nullptr;  // (B*H,M), likewise; the mean over the centroids
  bool mean = false;
  /// A mean divides by r_j + added_mass; where that is 0 nothing depends on the inputs.
  double added_mass = 1e-6;
};

/// What a pair's gradient needs to know of its input. Position -1: none.
struct InputTerms {
  int32_t position = kNoRow;
  float weight = 0.0f;
  float scale = 1.0f;
  float maximum = 0.0f;  // of the softmax over the centroids, as the next two
  float inverse_sum = 0.0f;
  float total = 0.0f;
};

/// The same of its centroid.
struct CentroidTerms {
  int32_t position = kNoRow;
  float bias = 0.0f;
  float factor = 0.0f;
  float offset = 0.0f;
  float logsumexp = 0.0f;  // in base 2, over the inputs
};

__device__ inline InputTerms input_terms(const CentroidGradientParams& params, int64_t batch,
                                         int64_t input, int64_t end) {
  const AssignmentParams& assignment = params.assignment;
  InputTerms terms;
  if (input >= end) return terms;
  terms.weight = assignment.weight(batch, input);
  if (terms.weight == 0.0f) return terms;
  terms.position = static_cast<int32_t>(input);
  if (assignment.column_scale != nullptr) {
    terms.scale = assignment.column_scale[batch * assignment.inputs + input];
  }
  return terms;
}

/// Fills in what statistics have found.
__device__ inline void fetch_statistics(const CentroidGradientParams& params, int64_t sequence,
                                        InputTerms& terms) {
  if (params.over_inputs || terms.position < 0) return;
  const int64_t place = sequence * params.assignment.inputs + terms.position;
  terms.maximum = params.assignment.maximum[place];
  terms.inverse_sum = params.assignment.factor[place];
  if (params.with_changes) terms.total = params.total[place];
}

__device__ inline CentroidTerms centroid_terms(const CentroidGradientParams& params,
                                               int64_t sequence, int64_t centroid, int64_t end) {
  CentroidTerms terms;
  if (centroid >= end) return terms;
  const int64_t row = sequence * params.assignment.centroids + centroid;
  terms.position = static_cast<int32_t>(centroid);
  if (params.assignment.row_bias != nullptr) terms.bias = params.assignment.row_bias[row];
  terms.factor = params.output_factor[row];
  terms.offset = params.output_offset[row];
  if (params.over_inputs) terms.logsumexp = saved_in_base2(params.logsumexp[row]);
  return terms;
}

__device__ inline void store_statistics(const CentroidGradientParams& params, int64_t sequence,
                                        const InputTerms& terms) {
  if (terms.position < 0) return;
  const int64_t place = sequence * params.assignment.inputs + terms.position;
  params.assignment.maximum[place] = terms.maximum;
  params.assignment.factor[place] = terms.inverse_sum;
  params.total[place] = terms.total;
}

/// Slices of 64 columns of the gradients by key and value, at least one.
CA_HOST_DEVICE inline int64_t chunk_count(const CentroidGradientParams& params) {
  const int64_t keys = params.key.wanted() ? tiles_of(params.assignment.dim) : 1;
  const int64_t values = params.value.wanted() ? tiles_of(params.assignment.value_dim) : 1;
  return keys > values ? keys : values;
}

/// Blocks among which these are shared out: one where the pairs of a single tile serve them all.
CA_HOST_DEVICE inline int64_t launched_chunks(const CentroidGradientParams& params) {
  return params.group == 1 && params.assignment.centroids <= kTile ? 1 : chunk_count(params);
}

}  // namespace cluster_attention::cuda
