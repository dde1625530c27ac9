#pragma once

// output_s = sum over the slots (l,t) that hold key s of weights_lt rows_l.
//
// Method: the slots are sorted by key (counting_sort.cuh); a warp owns 32 columns of a key and adds
// the rows of its queries in the order of the slots. Precision: fp32, blocks of 64 pairs are summed
// before they are added, as on the CPU: the same bits. Limits: any dim and k, up to 2^31 - 1 slots
// per sequence.

#include "cuda/sparse.cuh"
#include "cuda/sparse_gradient.h"

namespace cluster_attention::cuda {

/// Pairs of a weight and a row that are summed before they are added.
constexpr int kPairBlock = 64;

struct TransposedSumParams {
  SparseParams lists;          // of the forward call; its `rows` are the (B,H,L,dim) to be summed
  const float* weights;        // (B,H,L,k)
  bool stored_weights;         // in the call's storage, else fp32
  bool round_weights;          // of fp32 ones: precision 'bfloat16'
  const int32_t* key_offsets;  // (B,H,S+1), the sorted slots
  const int32_t* slots;        // (B,H,lists*k)
  int64_t lists_per_sequence;
  OutputRows output;  // (B,H,S,dim)
};

/// body(l, place) for every query l whose list holds the slot, ascending.
template <typename Body>
__device__ void for_each_query_of(const TransposedSumParams& params, int64_t sequence, int64_t slot,
                                  Body&& body) {
  const SparseParams& lists = params.lists;
  const int64_t list = slot / lists.sparse.k;
  const int64_t place = slot % lists.sparse.k;
  if (lists.sparse.labels == nullptr) {
    body(list, place);
    return;
  }
  const int32_t* offsets = lists.offsets + sequence * (lists.sparse.clusters + 1);
  const int32_t* order = lists.order + sequence * lists.shape.query_length;
  for (int64_t i = offsets[list]; i < offsets[list + 1]; ++i) body(order[i], place);
}

template <Read kRead>
__global__ void transposed_sum_kernel(const TransposedSumParams params) {
  // warp: slots of one key, rows (L,32 columns) -> output (32 columns)
  const SparseParams& lists = params.lists;
  const int64_t k = lists.sparse.k;
  const int64_t keys = lists.shape.key_length;
  const int64_t slices = divide_up(lists.dim, kWarp);
  const int64_t task = static_cast<int64_t>(blockIdx.x) * (kSparseThreads / kWarp) + warp_index();
  if (task >= lists.shape.batch * lists.shape.heads * keys * slices) return;
  const SparseSequence sequence(lists, task / slices / keys);
  const int64_t key = task / slices % keys;
  const int64_t column = task % slices * kWarp + lane_index();
  if (column >= lists.dim) return;  // the lanes do not meet again
  const int32_t* offsets = params.key_offsets + sequence.index * (keys + 1) + key;
  const int32_t* slots = params.slots + sequence.index * params.lists_per_sequence * k;
  const int64_t weights = sequence.index * lists.shape.query_length * k;
  const int64_t end = key < sequence.keys ? offsets[1] : offsets[0];
  float sum = 0.0f;
  float block = 0.0f;
  int pairs = 0;
  for (int64_t i = offsets[0]; i < end; ++i) {
    for_each_query_of(params, sequence.index, slots[i], [&](int64_t l, int64_t place) {
      float weight = params.stored_weights ? read<kRead>(params.weights, weights + l * k + place)
                                           : params.weights[weights + l * k + place];
      if (params.round_weights) weight = round_to_bfloat16(weight);
      const float value =
          read<kRead>(lists.rows.data, sequence.base + l * lists.rows.row_stride + column);
      block = fmaf(weight, value, block);
      if (++pairs < kPairBlock) return;
      sum += block;
      block = 0.0f;
      pairs = 0;
    });
  }
  sum += block;
  const int64_t target = row_offset(params.output, sequence.batch, sequence.head, key) + column;
  if (!write<kRead>(params.output.data, target, sum)) mark_non_finite(lists.flags);
}

}  // namespace cluster_attention::cuda
