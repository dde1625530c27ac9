#pragma once

#include "cuda/operands.h"
#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/stored_rows.cuh"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

struct PackParams {
  struct Tensor {
    StoredRows rows;  // (batch, heads, length, dim)
    bool vectors;     // rows can be read by 16 bytes
    int64_t length;
    const int32_t* lengths;        // (batch) of these rows
    const int32_t* other_lengths;  // (batch); without the rows that they meet nothing is read
    int32_t dim;
    int32_t chunks;  // of 8 columns, in a row
    bfloat16* high;  // (batch, heads, length, 8 chunks)
    bfloat16* low;   // the same, or null
  };
  Tensor tensors[kMostOperands];
  int count;       // of tensors
  int64_t chunks;  // of the largest tensor
  int64_t heads;
  int64_t sequences;
  Flags* flags;
};

constexpr int kPackThreads = 256;

/// Eight neighbouring columns, 0 past the end of the row.
__device__ inline void load_chunk(const PackParams::Tensor& tensor, int64_t at, int column,
                                  float (&values)[8]) {
  if (tensor.vectors && column + 8 <= tensor.dim && !tensor.rows.is_bfloat16) {
    load_eight_floats(static_cast<const float*>(tensor.rows.data) + at, values);
    return;
  }
  for (int i = 0; i < 8; ++i) {
    values[i] = column + i < tensor.dim ? tensor.rows.load(at + i) : 0.0f;
  }
}

/// Operands of the tensor cores: high = bfloat16(x), low = bfloat16(x - high); eight columns of a
/// row, which are chunk `item` of the tensor.
__device__ inline void pack_chunk(const PackParams& params, const PackParams::Tensor& tensor,
                                  int64_t item) {
  const int64_t row = item / tensor.chunks;
  const int column = static_cast<int>(item - row * tensor.chunks) * 8;
  const int64_t sequence = row / tensor.length;
  if (sequence >= params.sequences) return;
  const int64_t place = row - sequence * tensor.length;
  const int64_t batch = sequence / params.heads;
  const bool read = place < real_length(tensor.lengths, batch, tensor.length) &&
                    real_length(tensor.other_lengths, batch, 1) > 0;
  if (!read) return;
  float values[8];
  load_chunk(tensor, tensor.rows.offset(batch, sequence % params.heads, place) + column, column,
             values);
  uint32_t high[4];
  uint32_t low[4];
  bool bad = false;
  for (int i = 0; i < 4; ++i) {
    split_pair(values[2 * i], values[2 * i + 1], high[i], low[i]);
    bad = bad || pair_is_bad(high[i]);
  }
  if (bad) mark_non_finite(params.flags);
  const int64_t to = row * tensor.chunks + column / 8;
  reinterpret_cast<uint4*>(tensor.high)[to] = make_uint4(high[0], high[1], high[2], high[3]);
  if (tensor.low == nullptr) return;
  reinterpret_cast<uint4*>(tensor.low)[to] = make_uint4(low[0], low[1], low[2], low[3]);
}

/// A thread makes a chunk; blockIdx.y is the tensor. Memory-bound: each element is read once.
template <typename = void>
__global__ void __launch_bounds__(kPackThreads) pack_operands(const PackParams params) {
  // rows (batch, heads, length, dim) -> high, low (batch, heads, length, 8 chunks)
  pack_chunk(params, params.tensors[blockIdx.y],
             static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x);
}

}  // namespace cluster_attention::cuda
