#pragma once

// What the clusters of CAST (§7) have left in their slots, gathered by those that it belongs to: a
// warp per row, slots by ascending cluster. Nothing is scattered.

#include "cuda/cast_gradient_params.cuh"

namespace cluster_attention::cuda {

constexpr int kCastGatherThreads = 256;
/// Columns of a lane, 32 apart.
constexpr int kCastGatherColumns = 4;

/// Adds the rows of a token's slots to its columns first + lane + 32 i; all lanes of a warp call
/// it. rows: (B*H,C,kappa,width).
template <int kColumns>
__device__ void add_slots(const CastGradientParams& params, int64_t sequence, int64_t token,
                          const float* rows, int64_t width, int64_t first,
                          float (&sums)[kColumns]) {
  const CastParams& forward = params.forward;
  const int64_t batch = sequence / forward.heads;
  for (int64_t cluster = 0; cluster < forward.clusters; cluster += kWarp) {
    const int64_t mine = cluster + lane_index();
    const int32_t slot = mine < forward.clusters ? params.slot_of(batch, mine, token) : -1;
    for (unsigned found = ballot(slot >= 0); found != 0; found &= found - 1) {
      const int lane = __ffs(static_cast<int>(found)) - 1;
      const int64_t list = sequence * forward.clusters + cluster + lane;
      const float* row = rows + (list * forward.cluster_size + shuffle(slot, lane)) * width;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int64_t column = first + lane_index() + i * kWarp;
        if (column < width) sums[i] += row[column];
      }
    }
  }
}

/// Stores a token's columns first + lane + 32 i. True if one is not finite.
template <int kColumns>
__device__ bool write_gradient_row(const CastParams& forward, const OutputRows& target,
                                   int64_t sequence, int64_t token, int64_t width, int64_t first,
                                   const float (&sums)[kColumns]) {
  const int64_t place = sequence / forward.heads * target.batch_stride +
                        sequence % forward.heads * target.head_stride + token * target.row_stride;
  bool bad = false;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int64_t column = first + lane_index() + i * kWarp;
    if (column >= width) continue;
    bad |= !is_number(sums[i]);
    store_element(target.data, forward.storage, place + column, sums[i]);
  }
  return bad;
}

/// How many blocks gather what.
struct CastGatherBlocks {
  int64_t rows;        // a warp per token of each head: keys and values
  int64_t gates;       // a thread per token
  int64_t surrogates;  // a thread per element
};

CA_HOST_DEVICE inline CastGatherBlocks cast_gather_blocks(const CastGradientParams& params) {
  const CastParams& forward = params.forward;
  constexpr int64_t kRows = kCastGatherThreads / kWarp;
  const auto blocks = [](bool wanted, int64_t count, int64_t per_block) {
    return wanted ? (count + per_block - 1) / per_block : 0;
  };
  const int64_t tokens = forward.batch * forward.tokens;
  return {blocks(params.key.data != nullptr || params.value.data != nullptr, tokens * forward.heads,
                 kRows),
          blocks(params.gate != nullptr, tokens, kCastGatherThreads),
          blocks(params.surrogates != nullptr, forward.heads * forward.clusters * forward.dim,
                 kCastGatherThreads)};
}

/// The gradients by a token's key or value: what its slots hold, 0 for padding.
__device__ inline bool gather_row(const CastGradientParams& params, const OutputRows& target,
                                  const float* rows, int64_t width, int64_t row) {
  if (target.data == nullptr) return false;
  const CastParams& forward = params.forward;
  const int64_t sequence = row / forward.tokens;
  const int64_t token = row % forward.tokens;
  bool bad = false;
  for (int64_t first = 0; first < width; first += kCastGatherColumns * kWarp) {
    float sums[kCastGatherColumns] = {};
    if (token < forward.real_tokens(sequence / forward.heads)) {
      add_slots<kCastGatherColumns>(params, sequence, token, rows, width, first, sums);
    }
    bad |= write_gradient_row<kCastGatherColumns>(forward, target, sequence, token, width, first,
                                                  sums);
  }
  return bad;
}

/// The gradient by a token's gate: over the heads, what step 6 has found and what its slots hold.
__device__ inline bool gather_gate(const CastGradientParams& params, int64_t place) {
  const CastParams& forward = params.forward;
  const int64_t batch = place / forward.tokens;
  const int64_t token = place % forward.tokens;
  float sum = 0.0f;
  for (int64_t head = 0; token < forward.real_tokens(batch) && head < forward.heads; ++head) {
    const int64_t sequence = batch * forward.heads + head;
    float term = params.token_gate[sequence * forward.tokens + token];
    for (int64_t cluster = 0; cluster < forward.clusters; ++cluster) {
      const int32_t slot = params.slot_of(batch, cluster, token);
      const int64_t list = sequence * forward.clusters + cluster;
      if (slot >= 0) term += params.slot_gate[list * forward.cluster_size + slot];
    }
    sum += term;
  }
  params.gate[place] = sum;
  return !is_number(sum);
}

/// One element of the gradients by the surrogates: over the batch, both steps, parts in order.
__device__ inline bool gather_surrogate(const CastGradientParams& params, int64_t element) {
  const CastParams& forward = params.forward;
  const int64_t head = element / (forward.clusters * forward.dim);
  const int64_t rest = element % (forward.clusters * forward.dim);  // cluster, column
  const float scale = forward.product_scale(forward.clusters);
  float sum = 0.0f;
  for (int64_t batch = 0; batch < forward.batch; ++batch) {
    const int64_t tokens = forward.real_tokens(batch);
    if (tokens == 0) continue;
    const int64_t sequence = batch * forward.heads + head;
    const float total =
        total_of_parts(params.surrogate_sums + sequence * params.sum_rows * forward.dim + rest,
                       assignment_parts(tokens, forward.clusters), forward.clusters * forward.dim);
    sum += total * scale + params.surrogate_terms[sequence * forward.clusters * forward.dim + rest];
  }
  params.surrogates[element] = sum;
  return !is_number(sum);
}

template <typename = void>
__global__ void __launch_bounds__(kCastGatherThreads) cast_gather(const CastGradientParams params) {
  // slots: (C,kappa,D or E) -> gradients by key, value: (8 of N,D or E), gate: (256 of N),
  // surrogates: (256 of C,D)
  const CastParams& forward = params.forward;
  const CastGatherBlocks blocks = cast_gather_blocks(params);
  int64_t block = blockIdx.x;
  bool bad = false;
  if (block < blocks.rows) {
    const int64_t row = block * (kCastGatherThreads / kWarp) + warp_index();
    if (row < forward.batch * forward.heads * forward.tokens) {
      bad |= gather_row(params, params.key, params.slot_key, forward.dim, row);
      bad |= gather_row(params, params.value, params.slot_value, forward.value_dim, row);
    }
  } else if (block - blocks.rows < blocks.gates) {
    const int64_t place = (block - blocks.rows) * kCastGatherThreads + threadIdx.x;
    if (place < forward.batch * forward.tokens) bad |= gather_gate(params, place);
  } else {
    block -= blocks.rows + blocks.gates;
    const int64_t element = block * kCastGatherThreads + threadIdx.x;
    if (element < forward.heads * forward.clusters * forward.dim) {
      bad |= gather_surrogate(params, element);
    }
  }
  if (bad) mark_non_finite(forward.flags);
}

}  // namespace cluster_attention::cuda
