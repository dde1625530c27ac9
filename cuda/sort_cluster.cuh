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
#include "cuda/session.h"

namespace cluster_attention::cuda {

constexpr int kMostSortWarps = 16;

struct SortClusterParams {
  SortParams sort;   // without counts and tickets
  int64_t parts;     // blocks per sequence
  int64_t run_rows;  // of a warp, whole warps
};

inline SortClusterParams sort_cluster_params(Session& session, const SortProblem& problem,
                                             const SortPlan& plan) {
  SortClusterParams params{};
  params.sort.problem = problem;
  plan_sort(params.sort);
  params.sort.flags = session.flags();
  params.parts = plan.parts;
  params.run_rows = plan.run_rows;
  return params;
}

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
  int parts;          // blocks of the sequence
  int rank;
  int warps;
  int rows;      // labels of the block
  int run_rows;  // of a warp, whole warps
  int clusters;
  int counted;  // clusters that may have members
  int label_bits;
  int32_t* labels;   // (rows)
  int32_t* placed;   // (warps,counted)
  int32_t* totals;   // (counted)
  int32_t* scratch;  // (32)

  __device__ SortBlock() {}
  __device__ explicit SortBlock(const SortClusterParams& params) {
    warps = static_cast<int>(blockDim.x) / kWarp;
    clusters = counted = static_cast<int>(params.sort.problem.clusters);
    run_rows = static_cast<int>(params.run_rows);
    rows = warps * run_rows;
    parts = static_cast<int>(params.parts);
    sequence = blockIdx.x / static_cast<unsigned>(params.parts);
    rank = static_cast<int>(blockIdx.x % static_cast<unsigned>(params.parts));
    first_row = static_cast<int64_t>(rank) * rows;
    label_bits = params.sort.label_bits;
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

/// Turns the counts of the warps for one label into those of earlier warps; returns their sum.
__device__ inline int32_t sum_warps(const SortBlock& block, int c) {
  int32_t total = 0;
  for (int warp = 0; warp < block.warps; ++warp) {
    const int32_t count = block.placed[warp * block.counted + c];
    block.placed[warp * block.counted + c] = total;
    total += count;
  }
  return total;
}

/// Members of a label in the sequence, and in its earlier blocks.
struct LabelTotal {
  int32_t all = 0;
  int32_t earlier = 0;
};
__device__ inline LabelTotal total_of_label(const SortBlock& block, int c) {
  constexpr int kAtOnce = 8;
  LabelTotal total;
  if (c >= block.counted) return total;
  for (int group = 0; group < block.parts; group += kAtOnce) {
    int32_t counts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      counts[i] = group + i < block.parts ? in_block(block.totals, group + i)[c] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      total.all += counts[i];
      if (group + i < block.rank) total.earlier += counts[i];
    }
  }
  return total;
}

/// Adds what is before the block: earlier labels, and the rows of its label in earlier blocks. The
/// first block stores the offsets and the labels with members.
__device__ inline void add_places(const SortProblem& problem, const SortBlock& block) {
  const bool stores = block.rank == 0;
  int32_t* offsets = problem.offsets + block.sequence * (problem.clusters + 1);
  int32_t members = 0;  // of the labels so far
  int32_t active = 0;
  for (int first = 0; first < block.clusters; first += blockDim.x) {
    const int c = first + static_cast<int>(threadIdx.x);
    const LabelTotal total = total_of_label(block, c);
    int32_t added;
    const int32_t before = members + block_exclusive_sum(total.all, block.scratch, &added);
    members += added;
    for (int warp = 0; c < block.counted && warp < block.warps; ++warp) {
      block.placed[warp * block.counted + c] += before + total.earlier;
    }
    if (stores && c < block.clusters) offsets[c] = before;
    if (problem.active == nullptr) continue;
    const int32_t place =
        active + block_exclusive_sum(total.all > 0 ? 1 : 0, block.scratch, &added);
    active += added;
    if (stores && total.all > 0) problem.active[block.sequence * problem.clusters + place] = c;
  }
  if (!stores || threadIdx.x != 0) return;
  offsets[problem.clusters] = members;
  if (problem.active != nullptr) problem.active_count[block.sequence] = active;
}

/// Places the rows of this warp's run.
__device__ inline void place_run(const SortProblem& problem, const SortBlock& block) {
  const int begin = warp_index() * block.run_rows;
  int32_t* placed = block.placed + warp_index() * block.counted;
  int32_t* order = problem.order + block.sequence * problem.length;
  for (int i = begin + lane_index(); i < begin + block.run_rows; i += kWarp) {
    const int32_t label = i < block.rows ? block.labels[i] : -1;
    const uint32_t lanes = lanes_of_label(label, block.label_bits);
    const uint32_t earlier = lanes & ((1u << lane_index()) - 1u);
    const int32_t place = label >= 0 ? placed[label] : 0;
    __syncwarp();
    if (label >= 0) {
      order[place + __popc(earlier)] = static_cast<int32_t>(block.first_row + i);
      if (earlier == 0) placed[label] = place + __popc(lanes);
    }
    __syncwarp();
  }
}

/// Sorts; all threads of all blocks of the cluster call it. The totals of other blocks are read
/// until the next sync_cluster().
__device__ inline void sort_in_cluster(const SortClusterParams& params, const SortBlock& block) {
  count_run(params, block);
  __syncthreads();
  for (int c = threadIdx.x; c < block.counted; c += blockDim.x) {
    block.totals[c] = sum_warps(block, c);
  }
  sync_cluster();
  add_places(params.sort.problem, block);
  __syncthreads();
  place_run(params.sort.problem, block);
}

template <typename = void>
__global__ void __launch_bounds__(kMostSortWarps* kWarp, 1)
    sort_cluster_kernel(const SortClusterParams params) {
  // cluster of blocks: labels (length) -> order (length), offsets (clusters + 1)
  const SortBlock block(params);
  sort_in_cluster(params, block);
  sync_cluster();  // others have read this block's totals
}

}  // namespace cluster_attention::cuda
