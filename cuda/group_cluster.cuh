#pragma once

// Grouping in one launch: a cluster of 1..16 blocks owns a sequence. It hashes its rows
// (hash_product.cuh) or takes given labels, groups the hashes (hamming_cluster.cuh), sorts the rows
// by label (sort_cluster.cuh) and sums the members of every group (member_sums.cuh), each step as
// in a launch of its own, with the same bits. Hashes, labels and counts stay on chip; the order of
// the rows goes through memory. Before it, all blocks together copy what other launches shall read
// as operands (operands.cuh).
// Limits: those of the steps; rows to hash are whole 16 bytes, rows to sum whole pairs: these
// kernels hold the code of all steps once more, too much of it to have it for other rows as well.
// Compiled for clusters of blocks alone (compute capability 9.0).

#include "cuda/group_cluster.h"
#include "cuda/hamming_sort.cuh"
#include "cuda/hash_bits.cuh"
#include "cuda/member_sums.cuh"
#include "cuda/operands.cuh"

#if defined(CA_CUDA_MODEL) || __CUDA_ARCH__ >= 900
#define CA_HAS_BLOCK_CLUSTERS 1
#else
#define CA_HAS_BLOCK_CLUSTERS 0
#endif

namespace cluster_attention::cuda {

/// Neighbouring columns that a lane sums: rows of whole pairs alone.
constexpr int kGroupColumns = 2;
constexpr int kGroupThreads = kMostSortWarps * kWarp;
/// Rows of a block. With more, blocks of twice as many threads, which leave too few registers for
/// products of rows, group hashes sooner in a launch of their own, and all multiprocessors sum rows
/// sooner than those of the clusters.
constexpr int64_t kMostGroupRows = kGroupThreads;

/// What follows the sort, and what is done on the way.
struct GroupSums {
  MemberSumsParams sums[kMostGroupSums];
  int count;
  int places;  // of slices in shared memory
  PackParams packing;
};

struct GroupHashesParams {
  HammingParams kmeans;
  HammingSteps steps;
  HashProductParams hash;
  GroupSums after;
};

struct GroupLabelsParams {
  SortClusterParams sort;
  GroupSums after;
};

CA_HOST_DEVICE inline ClusterHammingLayout group_hamming_layout(const GroupHashesParams& params) {
  return cluster_hamming_layout(params.kmeans, params.steps == HammingSteps::warpgroups);
}

/// Hashes give way to nothing, all else of the grouping to planes.
CA_HOST_DEVICE inline int64_t planes_offset(const GroupHashesParams& params) {
  return group_hamming_layout(params).centroids;
}

/// This block's share of what the launch packs.
__device__ inline void pack_share(const PackParams& packing) {
#pragma unroll 1
  for (int t = 0; t < packing.count; ++t) {
    const PackParams::Tensor& tensor = packing.tensors[t];
#pragma unroll 1
    for (int64_t tile = blockIdx.x; tile < packing.sequences * tensor.tiles; tile += gridDim.x) {
      pack_tile(packing, tensor, tile);
    }
  }
}

/// The hashes of the block's rows; those past them, up to whole tiles, are 0.
template <Read kRead>
__device__ void hash_block(const GroupHashesParams& params) {
  const HammingBlock block(params.kmeans, params.steps == HammingSteps::warpgroups);
  constexpr int kRows = kHashTileRows<kRead>;
  const HashSequences& problem = params.hash.hash.sequences;
  HashProduct<kRead, true> product(params.hash, planes_offset(params));
  const int64_t sequence = block.sequence.index;
  const int step = kRows * static_cast<int>(blockDim.x) / kWarp;
  const auto tile_at = [&](int first) {
    HashTile tile;
    tile.sequence = sequence;
    tile.first_row = block.range.begin + first;
    const int left = block.rows - first;
    tile.rows = left < 0 ? 0 : left < kRows ? left : kRows;
    tile.base = row_offset(problem.inputs, sequence / problem.heads, sequence % problem.heads,
                           tile.first_row);
    return tile;
  };
  int first = kRows * warp_index();
  prefetch_tile<kRead>(problem, tile_at(first));
  product.load_planes();
  for (; first < block.rows; first += step) {
    prefetch_tile<kRead>(problem, tile_at(first + step));
    uint64_t* hashes = block.hashes + first;
    product.hash_tile(tile_at(first), [&](int row, uint64_t hash) { hashes[row] = hash; });
  }
  const int past = block.rows + static_cast<int>(threadIdx.x);
  if (past < block.whole_rows) block.hashes[past] = 0;
  if (product.bad()) mark_non_finite(params.hash.hash.flags);
}

/// iterate_hamming(), as planned.
__device__ inline int64_t iterate_in_steps(HammingSteps steps, const HammingParams& params,
                                           const HammingBlock& block) {
#if CA_HAS_WARPGROUP_PRODUCTS
  if (steps == HammingSteps::warpgroups) return iterate_hamming<WarpgroupHamming>(params, block);
#endif
  return steps == HammingSteps::one_tile
             ? iterate_hamming<WarpHamming<1>>(params, block)
             : iterate_hamming<WarpHamming<kMostHashTiles>>(params, block);
}

/// A hash of the sequence, from the block that has it.
__device__ inline uint64_t hash_in_cluster(const HammingBlock& block, int64_t position) {
  // Blocks have `rows` hashes each, the first `longer` of them one more; see split().
  const int64_t rows = block.sequence.length / block.parts;
  const int64_t longer = block.sequence.length % block.parts;
  const int64_t in_longer = longer * (rows + 1);
  const bool is_longer = position < in_longer;
  const int64_t rank = is_longer ? position / (rows + 1) : longer + (position - in_longer) / rows;
  const int64_t place = is_longer ? position % (rows + 1) : (position - in_longer) % rows;
  return in_block(block.hashes, static_cast<int>(rank))[place];
}

/// The sums over every group that is `rank` modulo `parts`, after the sort; all threads of all
/// blocks of the cluster call it.
template <Read kRead>
__device__ void sum_groups(const GroupSums& after, int64_t sequence, int rank, int parts) {
  sync_cluster_and_memory();  // the order of the rows comes from all blocks
  for (int i = 0; i < after.count; ++i) {
    sum_clusters<kRead, kGroupColumns>(after.sums[i], sequence, rank, parts,
                                       dynamic_shared<double>(), after.places);
  }
}

template <Read kRead>
__global__ void __launch_bounds__(kGroupThreads, 1)
    group_hashes_kernel(const GroupHashesParams params) {
  // cluster of blocks: rows (length,dim) -> labels, order (length), means (clusters,dim)
#if CA_HAS_BLOCK_CLUSTERS
  pack_share(params.after.packing);
  hash_block<kRead>(params);
  sync_cluster();
  const HammingBlock block(params.kmeans, params.steps == HammingSteps::warpgroups);
#pragma unroll 1
  for (int i = threadIdx.x; i < block.whole_rows; i += blockDim.x) {
    block.labels[i] = static_cast<uint16_t>(block.clusters);
  }
  start_hamming_block(params.kmeans, block,
                      [&](int64_t position) { return hash_in_cluster(block, position); });
  const int64_t updates = iterate_in_steps(params.steps, params.kmeans, block);
  store_hamming_block(params.kmeans, block, updates);
  sort_hamming_block(params.kmeans, block);
  sum_groups<kRead>(params.after, block.sequence.index, block.rank, block.parts);
#endif
}

template <Read kRead>
__global__ void __launch_bounds__(kGroupThreads, 1)
    group_labels_kernel(const GroupLabelsParams params) {
  // cluster of blocks: labels (length) -> order (length), sums (clusters,dim)
#if CA_HAS_BLOCK_CLUSTERS
  pack_share(params.after.packing);
  const SortBlock block(params.sort);
  sort_in_cluster(params.sort, block);
  sum_groups<kRead>(params.after, block.sequence, block.rank, block.parts);
#endif
}

}  // namespace cluster_attention::cuda
