#pragma once

// The end of hamming_cluster.cuh where the hashes are to be sorted by label as well: the labels and
// the members of every block are on chip already, so that the sort of sort_cluster.cuh takes no
// launch of its own.

#include "cuda/hamming_warpgroups.cuh"
#include "cuda/sort_cluster.cuh"

namespace cluster_attention::cuda {

inline HammingParams hamming_cluster_params(const HammingKMeansProblem& problem, int64_t heads,
                                            const HammingPlan& plan, const SortProblem* sort) {
  HammingParams params{};
  params.problem = problem;
  params.heads = heads;
  params.clusters = problem.clusters < problem.length ? problem.clusters : problem.length;
  params.parts = plan.parts;
  if (sort == nullptr) return params;
  params.sort = *sort;
  params.label_bits = bits_of_labels(sort->clusters);
  return params;
}

/// What a block iterates with; of tiles of 16 hashes, a warp takes as many as keep all warps at
/// work.
enum class HammingSteps { one_tile, two_tiles, warpgroups };
inline HammingSteps hamming_steps(int64_t length, const HammingPlan& plan) {
  if (plan.way == HammingPlan::Way::warpgroups) return HammingSteps::warpgroups;
  const int64_t tiles = divide_up(divide_up(length, plan.parts), 16);
  return plan.threads <= kTileHammingThreads && tiles <= plan.threads / kWarp
             ? HammingSteps::one_tile
             : HammingSteps::two_tiles;
}

/// Hashes and counts of bits are over (who has read them here has sent the centroids that this
/// block has waited for): labels and places take their memory. The members of other blocks are read
/// until the next sync_cluster().
__device__ inline SortBlock sort_block_of(const HammingParams& params, const HammingBlock& block) {
  static_assert(kMostHammingThreads / kWarp <= 32, "pairs have 32 words per cluster");
  SortBlock sort;
  sort.sequence = block.sequence.index;
  sort.first_row = block.range.begin;
  sort.parts = block.parts;
  sort.rank = block.rank;
  sort.warps = static_cast<int>(blockDim.x) / kWarp;
  sort.rows = block.rows;
  sort.run_rows = (block.rows + kWarp * sort.warps - 1) / (kWarp * sort.warps) * kWarp;
  sort.clusters = static_cast<int>(params.sort.clusters);
  sort.counted = block.clusters;
  sort.label_bits = params.label_bits;
  sort.labels = reinterpret_cast<int32_t*>(block.hashes);
  sort.placed = reinterpret_cast<int32_t*>(block.pairs);
  sort.totals = reinterpret_cast<int32_t*>(block.members);
  sort.scratch = reinterpret_cast<int32_t*>(block.moves - warp_index() * kMostMoves);
  return sort;
}

/// All threads of all blocks of the cluster call it.
__device__ inline void sort_hamming_block(const HammingParams& params, const HammingBlock& block) {
  const SortBlock sort = sort_block_of(params, block);
  const int begin = warp_index() * sort.run_rows;
  const int end = begin + sort.run_rows < sort.rows ? begin + sort.run_rows : sort.rows;
  int32_t* counts = sort.placed + warp_index() * sort.counted;
  __syncthreads();  // the last update of the centroids is over
  if (threadIdx.x == 0) {
    block.word.close();
    block.new_centroids.close();
  }
  for (int c = lane_index(); c < sort.counted; c += kWarp) counts[c] = 0;
  __syncwarp();
  for (int i = begin + lane_index(); i < end; i += kWarp) {
    const int32_t label = block.labels[i];
    sort.labels[i] = label;
    atomicAdd(&counts[label], 1);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < sort.counted; c += blockDim.x) sum_warps(sort, c);
  __syncthreads();
  add_places(params.sort, sort);
  __syncthreads();
  place_run(params.sort, sort);
}

template <typename Steps>
__device__ void group_in_cluster(const HammingParams& params) {
  const HammingBlock block(params, Steps::kWarpgroups);
  load_hashes(block);
  start_hamming_block(params, block,
                      [&](int64_t position) { return block.sequence.hashes[position]; });
  const int64_t updates = iterate_hamming<Steps>(params, block);
  store_hamming_block(params, block, updates);
  if (params.sort.order != nullptr) sort_hamming_block(params, block);
  sync_cluster();
}

template <int kTiles>
__global__ void __launch_bounds__(kTiles == 1 ? kTileHammingThreads : kMostHammingThreads, 1)
    hamming_cluster_kernel(const HammingParams params) {
  // cluster of blocks: hashes (length) -> labels (length), counts and centroids (clusters)
  group_in_cluster<WarpHamming<kTiles>>(params);
}

template <typename = void>
__global__ void __launch_bounds__(kWarpgroupHammingThreads, 1)
    hamming_warpgroups_kernel(const HammingParams params) {
  // the same
#if CA_HAS_WARPGROUP_PRODUCTS
  group_in_cluster<WarpgroupHamming>(params);
#endif
}

}  // namespace cluster_attention::cuda
