#pragma once

// What the kernel of improve.cuh is given.

#include "cuda/clustered_pass.h"
#include "cuda/primitives/stored_rows.cuh"
#include "native/core/tensor.h"

namespace cluster_attention::cuda {

constexpr int kImproveWarps = 4;  // at most, and two at least
constexpr int kImproveKeys = 32;  // in shared memory at once

struct ImproveParams {
  StoredRows query;        // (B,H,L,D)
  KeysAndValues operands;  // (B,H,S,D), (B,H,S,E)
  ClusteredPass pass;
  StoredOutput output;     // (B,H,L,E)
  const int32_t* offsets;  // (B,H,C+1)
  const int32_t* order;    // (B,H,L)
  const int32_t* key_lengths;
  int64_t heads;
  int64_t query_length;
  int64_t key_length;
  int64_t clusters;
  int64_t tiles;      // most that the clusters of a sequence can have
  int32_t tile_rows;  // a multiple of the rows that a block's warps take at once
  int32_t head_dim;
  int32_t value_dim;
  int32_t top_k;
  float scale;
  bool query_vectors;   // rows begin at multiples of 16 bytes
  bool output_vectors;  // and those of bases
  Flags* flags;
};

}  // namespace cluster_attention::cuda
