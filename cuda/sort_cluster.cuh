#pragma once

// The stable counting sort in one launch: a cluster of 1..16 blocks owns a sequence.
//
// Method: a warp has a run of rows and counts its labels in shared memory; the counts of a block
// are summed over its warps, those of a sequence over its blocks, which read each other's shared
// memory. What is before a label, in the sequence, the earlier blocks and the earlier warps, is
// then the place of its first row. Integers only.
// Limits: the labels of a block and the counts of its warps within shared memory.

#include "cuda/counting_sort.cuh"
#include "cuda/primitives/cluster.cuh"

namespace cluster_attention::cuda {

constexpr int kMostSortWarps = 16;

struct SortClusterParams {
  SortParams sort;   // without counts and tickets
  int64_t parts;     // blocks per sequence
  int64_t run_rows;  // of a warp, whole warps
};

/// Shared memory of a block: offsets in bytes.
struct SortClusterLayout {
  int64_t labels;   // int32 (rows)
  int64_t placed;   // int32 (warps,clusters): rows per label, then the place of the next one
  int64_t totals;   // int32 (clusters): of this block
  int64_t scratch;  // int32 (32)
  int64_t bytes;
};
CA_HOST_DEVICE inline SortClusterLayout sort_cluster_layout(int64_t warps, int64_t run_rows,
                                                            int64_t clusters) {
  SharedLayout parts;
  SortClusterLayout layout;
  layout.labels = parts.add<int32_t>(warps * run_rows);
  layout.placed = parts.add<int32_t>(warps * clusters);
  layout.totals = parts.add<int32_t>(clusters);
  layout.scratch = parts.add<int32_t>(kWarp);
  layout.bytes = parts.bytes();
  return layout;
}

/// What a block has of its sequence.
struct SortBlock {
  int64_t sequence;
  int64_t first_row;  // of the block
  int rank;
  int warps;
  int clusters;
  int run_rows;
  int32_t* labels;
  int32_t* placed;
  int32_t* totals;
  int32_t* scratch;

  __device__ explicit SortBlock(const SortClusterParams& params) {
    warps = static_cast<int>(blockDim.x) / kWarp;
    clusters = static_cast<int>(params.sort.problem.clusters);
    run_rows = static_cast<int>(params.run_rows);
    sequence = blockIdx.x / params.parts;
    rank = static_cast<int>(blockIdx.x % params.parts);
    first_row = static_cast<int64_t>(rank) * warps * run_rows;
    const SortClusterLayout layout = sort_cluster_layout(warps, run_rows, clusters);
    labels = dynamic_shared<int32_t>(layout.labels);
    placed = dynamic_shared<int32_t>(layout.placed);
    totals = dynamic_shared<int32_t>(layout.totals);
    scratch = dynamic_shared<int32_t>(layout.scratch);
  }
};

/// Reads the labels of this warp's run and counts them; faults are marked, and `clean` is written.
__device__ inline void count_run(const SortClusterParams& params, const SortBlock& block) {
  const SortProblem& problem = params.sort.problem;
  const int64_t rows = real_rows(problem, block.sequence);
  int32_t* labels = block.labels + warp_index() * block.run_rows;
  int32_t* counts = block.placed + warp_index() * block.clusters;
  const int64_t first = block.first_row + static_cast<int64_t>(warp_index()) * block.run_rows;
  for (int c = lane_index(); c < block.clusters; c += kWarp) counts[c] = 0;
  __syncwarp();
#pragma unroll 4
  for (int i = lane_index(); i < block.run_rows; i += kWarp) {
    const int64_t place = block.sequence * problem.length + first + i;
    int32_t label = first + i < rows ? problem.labels[place] : -1;
    if (label < -1 || label >= block.clusters) {
      mark_fault(
          params.sort.flags, IndexFault::out_of_range,
          problem.argument == SortArgument::labels ? IndexArgument::labels : IndexArgument::indices,
          place);
      label = -1;
    }
    labels[i] = label;
    if (label >= 0) atomicAdd(&counts[label], 1);
    if (problem.clean != nullptr && first + i < problem.length) problem.clean[place] = label;
  }
}

/// The counts of the warps become those of earlier warps, `totals` those of the block.
__device__ inline void sum_warps(const SortBlock& block) {
  for (int c = threadIdx.x; c < block.clusters; c += blockDim.x) {
    int32_t total = 0;
    for (int warp = 0; warp < block.warps; ++warp) {
      const int32_t count = block.placed[warp * block.clusters + c];
      block.placed[warp * block.clusters + c] = total;
      total += count;
    }
    block.totals[c] = total;
  }
}

/// Adds what is before the block: earlier labels, and the rows of its label in earlier blocks. The
/// first block stores the offsets and the labels with members.
__device__ inline void add_places(const SortClusterParams& params, const SortBlock& block) {
  constexpr int kAtOnce = 8;
  const SortProblem& problem = params.sort.problem;
  const int parts = static_cast<int>(params.parts);
  const bool stores = block.rank == 0;
  int32_t* offsets = problem.offsets + block.sequence * (problem.clusters + 1);
  int32_t members = 0;  // of the labels so far
  int32_t active = 0;
  for (int first = 0; first < block.clusters; first += blockDim.x) {
    const int c = first + static_cast<int>(threadIdx.x);
    const bool valid = c < block.clusters;
    int32_t total = 0;
    int32_t earlier = 0;
    for (int group = 0; group < parts; group += kAtOnce) {
      int32_t counts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        counts[i] = valid && group + i < parts ? in_block(block.totals, group + i)[c] : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        total += counts[i];
        if (group + i < block.rank) earlier += counts[i];
      }
    }
    int32_t added;
    const int32_t before = members + block_exclusive_sum(total, block.scratch, &added);
    members += added;
    for (int warp = 0; valid && warp < block.warps; ++warp) {
      block.placed[warp * block.clusters + c] += before + earlier;
    }
    if (stores && valid) offsets[c] = before;
    if (problem.active == nullptr) continue;
    const int32_t place = active + block_exclusive_sum(total > 0 ? 1 : 0, block.scratch, &added);
    active += added;
    if (stores && total > 0) {
      problem.active[block.sequence * problem.clusters + place] = c;
    }
  }
  if (!stores || threadIdx.x != 0) return;
  offsets[problem.clusters] = members;
  if (problem.active != nullptr) problem.active_count[block.sequence] = active;
}

__device__ inline void place_run(const SortClusterParams& params, const SortBlock& block) {
  const SortProblem& problem = params.sort.problem;
  const int32_t* labels = block.labels + warp_index() * block.run_rows;
  int32_t* placed = block.placed + warp_index() * block.clusters;
  int32_t* order = problem.order + block.sequence * problem.length;
  const int64_t first = block.first_row + static_cast<int64_t>(warp_index()) * block.run_rows;
  for (int i = lane_index(); i < block.run_rows; i += kWarp) {
    const int32_t label = labels[i];
    const uint32_t lanes = lanes_of_label(label, params.sort.label_bits);
    const uint32_t earlier = lanes & ((1u << lane_index()) - 1u);
    const int32_t place = label >= 0 ? placed[label] : 0;
    __syncwarp();
    if (label >= 0) {
      order[place + __popc(earlier)] = static_cast<int32_t>(first + i);
      if (earlier == 0) placed[label] = place + __popc(lanes);
    }
    __syncwarp();
  }
}

template <typename = void>
__global__ void __launch_bounds__(kMostSortWarps* kWarp, 1)
    sort_cluster_kernel(const SortClusterParams params) {
  // cluster of blocks: labels (length) -> order (length), offsets (clusters + 1)
  const SortBlock block(params);
  count_run(params, block);
  __syncthreads();
  sum_warps(block);
  sync_cluster();
  add_places(params, block);
  __syncthreads();
  place_run(params, block);
  sync_cluster();  // others have read this block's totals
}

}  // namespace cluster_attention::cuda
