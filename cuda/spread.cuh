#pragma once

// The last step of clustered attention: output_i = V^c_j, j the cluster of query i. Bound by
// writing the output: a thread writes eight columns of a query at once.

#include "cuda/primitives/eight.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

struct SpreadParams {
  const float* values;    // (B,H,C,E)
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
  const uint32_t tiles = static_cast<uint32_t>(params.tiles);  // fits as the grid does
  const int64_t sequence = blockIdx.x / tiles;
  const int64_t first = static_cast<int64_t>(blockIdx.x % tiles) * rows * kSpreadPasses + row;
  const int32_t* labels = params.labels + sequence * params.query_length;
  int32_t label[kSpreadPasses];
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    const int64_t query = first + pass * rows;
    label[pass] = query < params.query_length ? labels[query] : -1;
  }
  const float* values = params.values + sequence * params.clusters * params.value_dim + column;
  // All are asked for before the first one is waited for.
  float value[kSpreadPasses][8];
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    if (label[pass] < 0) continue;  // past the end, or written by join_stretches
    load_eight(values + static_cast<int64_t>(label[pass]) * params.value_dim, params.vectors,
               params.value_dim - column, value[pass]);
  }
  const uint32_t heads = static_cast<uint32_t>(params.heads);
  const uint32_t number = static_cast<uint32_t>(sequence);
  const int64_t output = params.output.offset(number / heads, number % heads, first) + column;
#pragma unroll
  for (int pass = 0; pass < kSpreadPasses; ++pass) {
    if (label[pass] < 0) continue;
    store_eight(params.output, output + pass * rows * params.output.row_stride, params.vectors,
                params.value_dim - column, value[pass]);
  }
}

}  // namespace cluster_attention::cuda
