#pragma once

// What the forward and the backward of centroid attention over lists of neighbors share: a list per
// warp, lanes over the elements of a row; gathered rows pass no tile.

#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/rows.cuh"

namespace cluster_attention::cuda {

constexpr int kNeighborThreads = 256;
constexpr int kListsPerBlock = kNeighborThreads / kWarp;

/// The list of this warp: batch * M + j, or sequence * M + j.
__device__ inline int64_t list_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kListsPerBlock + warp_index();
}

/// Checks one list of `neighbors` and keeps in `lists` what counts: real inputs of a weight that is
/// not 0, each once, and none for a padded centroid. By the whole warp.
template <typename Params>
__device__ void clean_list(const Params& params, int64_t list) {
  const int64_t batch = list / params.centroids;
  const bool real = list % params.centroids < params.real_centroids(batch);
  const int32_t* neighbors = params.neighbors + list * params.slots;
  for (int64_t slot = lane_index(); slot < params.slots; slot += kWarp) {
    const int32_t input = real ? neighbors[slot] : -1;
    if (input < -1 || input >= params.inputs) {
      mark_fault(params.flags, IndexFault::out_of_range, IndexArgument::neighbors,
                 list * params.slots + slot);
    }
    bool counts = input >= 0 && input < params.real_inputs(batch);
    counts = counts && params.weight(batch, input) != 0.0f;
    for (int64_t before = 0; counts && before < slot; ++before) {
      counts = neighbors[before] != input;
    }
    params.lists[list * params.slots + slot] = counts ? input : -1;
  }
}

/// Slots of a list whose rows are read together: one by one, each would wait for memory.
constexpr int kSlotsAtOnce = 4;

/// The inputs of slots [first, first + kSlotsAtOnce), -1 for none.
struct SlotInputs {
  int32_t input[kSlotsAtOnce];

  __device__ SlotInputs(const int32_t* list, int64_t first, int64_t slots) {
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) input[i] = first + i < slots ? list[first + i] : -1;
  }
};

/// dots[i] = q_j.k_i of each of the inputs, 0 for none; by the whole warp.
__device__ inline void warp_dots(const Rows& query, int64_t centroid, const Rows& key,
                                 const SlotInputs& inputs, int64_t dim,
                                 float (&dots)[kSlotsAtOnce]) {
#pragma unroll
  for (int i = 0; i < kSlotsAtOnce; ++i) dots[i] = 0.0f;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    const float q = query.element(centroid, d);
    float k[kSlotsAtOnce];
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      k[i] = inputs.input[i] >= 0 ? key.element(inputs.input[i], d) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) dots[i] = fmaf(q, k[i], dots[i]);
  }
#pragma unroll
  for (int i = 0; i < kSlotsAtOnce; ++i) dots[i] = warp_sum(dots[i]);
}

}  // namespace cluster_attention::cuda
