#pragma once

// What the backward of exact attention needs of every query: its log-sum-exp in base 2, and
// delta = g·output. A warp per query. Bound by reading g and the output.

#include "cuda/primitives/bfloat16.cuh"
#include "cuda/primitives/stored_rows.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/softmax_state.h"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

constexpr int kTermWarps = 8;

struct QueryTermsParams {
  StoredRows gradient;     // (B,H,L,E)
  StoredRows output;       // the same
  const float* logsumexp;  // (B,H,L)
  const int32_t* query_lengths;
  float* maximum;  // (B,H,L)
  float* offset;   // the same
  int64_t heads;
  int64_t query_length;
  int64_t queries;  // of all sequences
  int32_t value_dim;
  bool round_gradient;  // to bfloat16, as the products will
};

/// A saved log-sum-exp in base 2; that of a row without keys leaves weights of 0.
__device__ inline float maximum_of(float logsumexp) {
  return logsumexp == -HUGE_VALF ? HUGE_VALF : saved_in_base2(logsumexp);
}

template <typename = void>
__global__ void __launch_bounds__(kTermWarps* kWarp)
    query_terms_kernel(const QueryTermsParams params) {
  // gradient, output (B,H,L,E) -> maximum, offset (B,H,L)
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kTermWarps + warp_index();
  if (query >= params.queries) return;
  const int64_t sequence = query / params.query_length;
  const int64_t row = query - sequence * params.query_length;
  const int64_t batch = sequence / params.heads;
  const int64_t head = sequence % params.heads;
  if (row >= real_length(params.query_lengths, batch, params.query_length)) return;
  const int64_t gradient = params.gradient.offset(batch, head, row);
  const int64_t output = params.output.offset(batch, head, row);
  const float maximum = maximum_of(params.logsumexp[query]);
  float sum = 0.0f;
  // A row without keys has weights of 0, and may be NaN.
  const int columns = maximum == HUGE_VALF ? 0 : params.value_dim;
  for (int column = lane_index(); column < columns; column += kWarp) {
    float value = params.gradient.load(gradient + column);
    if (params.round_gradient) value = round_to_bfloat16(value);
    sum = fmaf(value, params.output.load(output + column), sum);
  }
  sum = warp_sum(sum);
  if (lane_index() != 0) return;
  params.maximum[query] = maximum;
  params.offset[query] = sum;
}

}  // namespace cluster_attention::cuda
