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
    int64_t other_length;
    bool causal;            // the first rows, where there are more than others, meet none
    const int32_t* labels;  // (batch, heads, length) or null: below 0, a row meets none
    int32_t dim;
    int32_t chunks;     // of 8 columns, in a row
    int32_t tile_rows;  // that a block packs together
    int64_t tiles;      // of a sequence
    bfloat16* high;     // (batch, heads, length, 8 chunks)
    bfloat16* low;      // the same, or null
  };
  Tensor tensors[kMostOperands];
  int count;      // of tensors
  int64_t tiles;  // of all sequences of the tensor with the most
  int64_t heads;
  int64_t sequences;
  Flags* flags;
};

constexpr int kPackThreads = 256;
/// Chunks that a thread reads before it writes the first.
constexpr int kPackedAtOnce = 2;
constexpr int64_t kTileChunks = kPackThreads * kPackedAtOnce;

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

/// Operands of the tensor cores: high = bfloat16(x), low = bfloat16(x - high). True where a number
/// is not finite.
__device__ inline bool store_chunk(const PackParams::Tensor& tensor, int64_t chunk,
                                   const float (&values)[8]) {
  uint32_t high[4];
  uint32_t low[4];
  bool bad = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    split_pair(values[2 * i], values[2 * i + 1], high[i], low[i]);
    bad = bad || pair_is_bad(high[i]);
  }
  reinterpret_cast<uint4*>(tensor.high)[chunk] = make_uint4(high[0], high[1], high[2], high[3]);
  if (tensor.low != nullptr) {
    reinterpret_cast<uint4*>(tensor.low)[chunk] = make_uint4(low[0], low[1], low[2], low[3]);
  }
  return bad;
}

/// Tile `tile` of all sequences of the tensor, none past the last; all threads of the block call
/// it.
__device__ inline void pack_tile(const PackParams& params, const PackParams::Tensor& tensor,
                                 int64_t tile) {
  // A tile becomes some 8 KB: there are not 2^32 of them, and 64 bits take far longer to divide.
  const auto number = static_cast<uint32_t>(tile);
  const auto tiles = static_cast<uint32_t>(tensor.tiles);
  const auto heads = static_cast<uint32_t>(params.heads);
  const uint32_t sequence = number / tiles;
  if (sequence >= params.sequences) return;
  const int64_t first_row = int64_t{number - sequence * tiles} * tensor.tile_rows;
  const uint32_t batch = sequence / heads;
  const int64_t left = real_length(tensor.lengths, batch, tensor.length) - first_row;
  const int64_t others = real_length(tensor.other_lengths, batch, tensor.other_length);
  if (left <= 0 || others <= 0) return;
  const int rows = left < tensor.tile_rows ? static_cast<int>(left) : tensor.tile_rows;
  const int64_t masked = tensor.causal ? left - others : 0;  // rows of the tile that meet none
  const int32_t* labels =
      tensor.labels != nullptr ? tensor.labels + sequence * tensor.length + first_row : nullptr;
  const int chunks = tensor.chunks;
  const int64_t from = tensor.rows.offset(batch, sequence - batch * heads, first_row);
  const int64_t to = (sequence * tensor.length + first_row) * chunks;
  const int threads = static_cast<int>(blockDim.x);
  bool bad = false;
  for (int first = threadIdx.x; first < rows * chunks; first += kPackedAtOnce * threads) {
    float values[kPackedAtOnce][8];
#pragma unroll
    for (int i = 0; i < kPackedAtOnce; ++i) {
      const int chunk = first + i * threads;
      if (chunk >= rows * chunks) break;
      const int row = chunk / chunks;
      const int column = (chunk - row * chunks) * 8;
      if (row >= masked && (labels == nullptr || labels[row] >= 0)) {
        load_chunk(tensor, from + row * tensor.rows.row_stride + column, column, values[i]);
      } else {
        for (float& value : values[i]) value = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kPackedAtOnce; ++i) {
      const int chunk = first + i * threads;
      if (chunk >= rows * chunks) break;
      bad = store_chunk(tensor, to + chunk, values[i]) || bad;
    }
  }
  if (bad) mark_non_finite(params.flags);
}

/// blockIdx.y is the tensor. Memory-bound: each element is read once.
template <typename = void>
__global__ void __launch_bounds__(kPackThreads) pack_operands(const PackParams params) {
  // rows (batch, heads, length, dim) -> high, low (batch, heads, length, 8 chunks)
  pack_tile(params, params.tensors[blockIdx.y], blockIdx.x);
}

}  // namespace cluster_attention::cuda
