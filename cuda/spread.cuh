#pragma once

// The last step of clustered attention: output_i = V^c_j, j the cluster of query i. Bound by
// writing the output: a thread copies eight columns of a query at once. V^c is stored as the
// output is.

#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

struct SpreadParams {
  StoredRows values;      // (B,H,C,E), rows side by side
  const int32_t* labels;  // (B,H,L)
  StoredOutput output;    // (B,H,L,E)
  int64_t heads;
  int64_t query_length;
  int64_t clusters;
  int64_t tiles;  // of a sequence's queries
  int32_t value_dim;
  int32_t chunks;  // of eight columns, in a row
  bool vectors;    // rows of values and output begin at multiples of 16 bytes
};

constexpr int kSpreadThreads = 256;
constexpr int kSpreadPasses = 4;

/// Queries of a block.
CA_HOST_DEVICE inline int64_t spread_queries(int64_t chunks) {
  return kSpreadThreads / chunks * kSpreadPasses;
}

__global__ void __launch_bounds__(kSpreadThreads) spread(const SpreadParams params) {
  // values (B,H,C,E), labels (B,H,L) -> output (B,H,L,E)
  const int rows = kSpreadThreads / params.chunks;  // at once
  const int row = static_cast<int>(threadIdx.x) / params.chunks;
  const int column = static_cast<int>(threadIdx.x) % params.chunks * 8;
  if (row >= rows) return;
  // Both fit as the grid does.
  const uint32_t tiles = static_cast<uint32_t>(params.tiles);
  const uint32_t heads = static_cast<uint32_t>(params.heads);
  const uint32_t sequence = blockIdx.x / tiles;
  const int64_t first = static_cast<int64_t>(blockIdx.x % tiles) * rows * kSpreadPasses + row;
  const int32_t* labels = params.labels + sequence * params.query_length;
  int32_t label[kSpreadPasses];
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    const int64_t query = first + pass * rows;
    label[pass] = query < params.query_length ? labels[query] : -1;
  }
  const int64_t values = params.values.offset(0, sequence, 0) + column;
  const int64_t output = params.output.offset(sequence / heads, sequence % heads, first) + column;
  const int count = params.value_dim - column;
  const bool whole = params.vectors && count >= 8;
  const bool narrow = params.output.is_bfloat16;  // eight columns are 16 bytes, else 32
  const int64_t bytes = narrow ? 2 : 4;
  // All are asked for before the first one is waited for.
  uint4 words[kSpreadPasses][2];
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    if (label[pass] < 0 || !whole) continue;
    const int64_t from = values + label[pass] * params.values.row_stride;
    const uint4* source =
        reinterpret_cast<const uint4*>(static_cast<const char*>(params.values.data) + from * bytes);
    words[pass][0] = source[0];
    if (!narrow) words[pass][1] = source[1];
  }
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    if (label[pass] < 0) continue;  // past the end, or written by join_stretches
    const int64_t to = output + pass * rows * params.output.row_stride;
    if (!whole) {
      const int64_t from = values + label[pass] * params.values.row_stride;
      store_eight_singly(params.output, to, count, load_eight_singly(params.values, from, count));
      continue;
    }
    uint4* target = reinterpret_cast<uint4*>(static_cast<char*>(params.output.data) + to * bytes);
    target[0] = words[pass][0];
    if (!narrow) target[1] = words[pass][1];
  }
}

}  // namespace cluster_attention::cuda
