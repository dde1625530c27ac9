#pragma once

// A block of hamming_cluster.cuh or hamming_warpgroups.cuh: what it keeps on chip of its sequence,
// and how it starts.

#include "cuda/hamming_kmeans.cuh"
#include "cuda/primitives/delivery.cuh"

namespace cluster_attention::cuda {

constexpr int64_t kClusterHammingClusters = 1024;
/// Tiles of 16 hashes that a warp compares at a time, at most.
constexpr int kMostHashTiles = 2;
/// Of a block whose warps compare one tile, or kMostHashTiles.
constexpr int kTileHammingThreads = 512;
constexpr int kMostHammingThreads = 1024;
constexpr int kMostHammingParts = kMostClusterBlocks;
/// Hashes that a warp labels before it moves their bits.
constexpr int kMostMoves = 16 * kMostHashTiles;
/// Hashes that a warpgroup labels at a time: two tiles of 64.
constexpr int kWarpgroupHashes = 128;
constexpr int kWarpgroupHammingThreads = 512;
/// Centroids in a product of a warpgroup.
constexpr int kWarpgroupCentroids = 64;

/// Hashes of a block up to the end of what is multiplied.
CA_HOST_DEVICE inline int64_t whole_hamming_rows(int64_t rows, bool warpgroups) {
  return round_up(rows, warpgroups ? kWarpgroupHashes : 16 * kMostHashTiles);
}

/// Shared memory of a block: offsets in bytes.
struct ClusterHammingLayout {
  int64_t hashes;     // uint64 (whole_hamming_rows())
  int64_t centroids;  // uint64 (clusters)
  int64_t operands;   // all centroids as they are multiplied with: uint4 (clusters / 8 + 1,32); for
                      // warpgroups (clusters / 128,64,8), swizzled, from a multiple of 1024 on
  int64_t moves;      // uint4 (warps,kMostMoves): hash, places of the counters from and to
  int64_t pairs;      // uint32 (clusters,32): bits b | bits b + 32 << 16
  int64_t members;    // uint32 (clusters)
  int64_t changed;    // uint32 (2,blocks): a label of theirs has, in iterations even and odd
  int64_t barriers;   // uint64 (2,2): of the deliveries
  int64_t labels;     // uint16 (whole_hamming_rows())
  // For warpgroups, else nothing. Share: clusters / blocks.
  int64_t biases;        // int32 (clusters), whole products: what sums are to be added to
  int64_t told_pairs;    // uint32 (blocks,share,32): what all have counted of this block's share
  int64_t told_members;  // uint32 (blocks,share)
  int64_t bytes;
};

CA_HOST_DEVICE inline ClusterHammingLayout cluster_hamming_layout(int64_t rows, int64_t clusters,
                                                                  int64_t blocks, bool warpgroups) {
  const int64_t whole_rows = whole_hamming_rows(rows, warpgroups);
  const int64_t told = warpgroups ? blocks * divide_up(clusters, blocks) : 0;
  constexpr int64_t kAlignment = 1024 / sizeof(uint4);
  SharedLayout parts;
  ClusterHammingLayout layout;
  layout.hashes = parts.add<uint64_t>(whole_rows);
  layout.centroids = parts.add<uint64_t>(clusters);
  layout.operands = parts.add<uint4>(
      warpgroups
          ? divide_up(clusters, 2 * kWarpgroupCentroids) * kWarpgroupCentroids * 8 + kAlignment
          : (divide_up(clusters, 8) + 1) * kWarp);
  layout.moves = parts.add<uint4>((warpgroups ? kWarpgroupHammingThreads : kMostHammingThreads) /
                                  kWarp * kMostMoves);
  layout.pairs = parts.add<uint32_t>(clusters * 32);
  layout.members = parts.add<uint32_t>(clusters);
  layout.changed = parts.add<uint32_t>(2 * kMostHammingParts);
  layout.barriers = parts.add<uint64_t>(2 * Delivery::kBarriers);
  layout.labels = parts.add<uint16_t>(whole_rows);
  layout.biases = parts.add<int32_t>(warpgroups ? round_up(clusters, kWarpgroupCentroids) : 0);
  layout.told_pairs = parts.add<uint32_t>(told * 32);
  layout.told_members = parts.add<uint32_t>(told);
  layout.bytes = parts.bytes();
  return layout;
}

CA_HOST_DEVICE inline ClusterHammingLayout cluster_hamming_layout(const HammingParams& params,
                                                                  bool warpgroups) {
  return cluster_hamming_layout(divide_up(params.problem.length, params.parts), params.clusters,
                                params.parts, warpgroups);
}

/// What a block has of its sequence.
struct HammingBlock {
  HammingSequence sequence;
  Range range;  // hashes of the sequence
  int rows;
  int whole_rows;
  int clusters;
  int parts;
  int rank;
  uint64_t* hashes;
  uint64_t* centroids;
  uint4* operands;
  uint4* moves;  // of this warp
  uint32_t* pairs;
  uint32_t* members;
  uint32_t* changed;
  uint16_t* labels;
  int32_t* biases;
  uint32_t* told_pairs;
  uint32_t* told_members;
  uint64_t window;         // cluster_window()
  Delivery word;           // of whether a label has changed: the counts are there
  Delivery new_centroids;  // from the blocks that have updated them

  __device__ HammingBlock(const HammingParams& params, bool warpgroups)
      : HammingBlock(params, warpgroups, cluster_hamming_layout(params, warpgroups)) {}

 private:
  __device__ HammingBlock(const HammingParams& params, bool warpgroups,
                          const ClusterHammingLayout& layout)
      : sequence(params, blockIdx.x / static_cast<unsigned>(params.parts)),
        parts(static_cast<int>(params.parts)),
        word(dynamic_shared<uint64_t>(layout.barriers), parts),
        new_centroids(dynamic_shared<uint64_t>(layout.barriers) + Delivery::kBarriers, parts) {
    rank = static_cast<int>(blockIdx.x % static_cast<unsigned>(params.parts));
    range = split(sequence.length, params.parts, rank);
    rows = static_cast<int>(range.end - range.begin);
    whole_rows = static_cast<int>(whole_hamming_rows(rows, warpgroups));
    clusters = static_cast<int>(sequence.clusters);
    hashes = dynamic_shared<uint64_t>(layout.hashes);
    centroids = dynamic_shared<uint64_t>(layout.centroids);
    operands = dynamic_shared<uint4>(layout.operands);
    moves = dynamic_shared<uint4>(layout.moves) + warp_index() * kMostMoves;
    pairs = dynamic_shared<uint32_t>(layout.pairs);
    members = dynamic_shared<uint32_t>(layout.members);
    changed = dynamic_shared<uint32_t>(layout.changed);
    labels = dynamic_shared<uint16_t>(layout.labels);
    biases = dynamic_shared<int32_t>(layout.biases);
    told_pairs = dynamic_shared<uint32_t>(layout.told_pairs);
    told_members = dynamic_shared<uint32_t>(layout.told_members);
    window = cluster_window();
  }
};

/// Loads the hashes.
__device__ inline void load_hashes(const HammingBlock& block) {
  const HammingSequence& sequence = block.sequence;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int whole_rows = block.whole_rows;
  constexpr int kAtOnce = 4;  // on their way before the first is stored
  for (int first = thread; first < whole_rows; first += kAtOnce * threads) {
    uint64_t hashes[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i * threads;
      hashes[i] = row < block.rows ? sequence.hashes[block.range.begin + row] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i * threads;
      if (row >= whole_rows) break;
      block.hashes[row] = hashes[i];
      block.labels[row] = static_cast<uint16_t>(block.clusters);
    }
  }
}

/// Draws the first centroids, where hash_at(position) is a hash of the sequence, and clears the
/// counters. What is past the real length and the clamp is written to memory.
template <typename HashAt>
__device__ void start_hamming_block(const HammingParams& params, const HammingBlock& block,
                                    const HashAt& hash_at) {
  const HammingKMeansProblem& problem = params.problem;
  const HammingSequence& sequence = block.sequence;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int c = thread; c < block.clusters; c += threads) {
    block.centroids[c] = problem.initial != nullptr
                             ? problem.initial[sequence.index * problem.clusters + c]
                             : hash_at(random_position(problem.seed, RandomStream::start_positions,
                                                       sequence.length, c));
  }
#pragma unroll 1
  for (int c = thread; c < block.clusters; c += threads) block.members[c] = 0;
#pragma unroll 1
  for (int i = thread; i < block.clusters * 32; i += threads) block.pairs[i] = 0;
  if (thread == 0) {
    block.word.open();
    block.new_centroids.open();
  }
  const int64_t stride = static_cast<int64_t>(block.parts) * threads;
  const int64_t own = static_cast<int64_t>(block.rank) * threads + thread;
#pragma unroll 1
  for (int64_t i = sequence.length + own; i < problem.length; i += stride) sequence.labels[i] = -1;
#pragma unroll 1
  for (int64_t c = sequence.clusters + own; c < problem.clusters; c += stride) {
    sequence.counts[c] = 0;
    sequence.centroids[c] = 0;
  }
}

}  // namespace cluster_attention::cuda
