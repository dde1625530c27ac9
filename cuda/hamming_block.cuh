#pragma once

// A block of hamming_cluster.cuh: what it keeps on chip of its sequence, and how it starts.

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

/// Shared memory of a block: offsets in bytes.
struct ClusterHammingLayout {
  int64_t hashes;     // uint64 (rows), whole tiles of a warp
  int64_t centroids;  // uint64 (clusters)
  int64_t operands;   // uint4 (clusters / 8 + 1,32): all centroids as a lane multiplies with them
  int64_t moves;      // uint4 (warps,kMostMoves): hash, places of the counters from and to
  int64_t pairs;      // uint32 (clusters,32): bits b | bits b + 32 << 16
  int64_t members;    // uint32 (clusters)
  int64_t changed;    // uint32 (2,blocks): a label of theirs has, in iterations even and odd
  int64_t barriers;   // uint64 (2,2): of the deliveries
  int64_t labels;     // uint16 (rows)
  int64_t bytes;
};

CA_HOST_DEVICE inline ClusterHammingLayout cluster_hamming_layout(int64_t rows, int64_t clusters) {
  const int64_t whole_rows = round_up(rows, 16 * kMostHashTiles);
  SharedLayout parts;
  ClusterHammingLayout layout;
  layout.hashes = parts.add<uint64_t>(whole_rows);
  layout.centroids = parts.add<uint64_t>(clusters);
  layout.operands = parts.add<uint4>((divide_up(clusters, 8) + 1) * kWarp);
  layout.moves = parts.add<uint4>(kMostHammingThreads / kWarp * kMostMoves);
  layout.pairs = parts.add<uint32_t>(clusters * 32);
  layout.members = parts.add<uint32_t>(clusters);
  layout.changed = parts.add<uint32_t>(2 * kMostHammingParts);
  layout.barriers = parts.add<uint64_t>(2 * Delivery::kBarriers);
  layout.labels = parts.add<uint16_t>(whole_rows);
  layout.bytes = parts.bytes();
  return layout;
}

/// What a block has of its sequence.
struct HammingBlock {
  HammingSequence sequence;
  Range range;  // hashes of the sequence
  int rows;
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
  Delivery word;           // of whether a label has changed: the counts are there
  Delivery new_centroids;  // from the blocks that have updated them

  __device__ explicit HammingBlock(const HammingParams& params)
      : HammingBlock(params, cluster_hamming_layout(divide_up(params.problem.length, params.parts),
                                                    params.clusters)) {}

 private:
  __device__ HammingBlock(const HammingParams& params, const ClusterHammingLayout& layout)
      : sequence(params, blockIdx.x / static_cast<unsigned>(params.parts)),
        parts(static_cast<int>(params.parts)),
        word(dynamic_shared<uint64_t>(layout.barriers), parts),
        new_centroids(dynamic_shared<uint64_t>(layout.barriers) + Delivery::kBarriers, parts) {
    rank = static_cast<int>(blockIdx.x % static_cast<unsigned>(params.parts));
    range = split(sequence.length, params.parts, rank);
    rows = static_cast<int>(range.end - range.begin);
    clusters = static_cast<int>(sequence.clusters);
    hashes = dynamic_shared<uint64_t>(layout.hashes);
    centroids = dynamic_shared<uint64_t>(layout.centroids);
    operands = dynamic_shared<uint4>(layout.operands);
    moves = dynamic_shared<uint4>(layout.moves) + warp_index() * kMostMoves;
    pairs = dynamic_shared<uint32_t>(layout.pairs);
    members = dynamic_shared<uint32_t>(layout.members);
    changed = dynamic_shared<uint32_t>(layout.changed);
    labels = dynamic_shared<uint16_t>(layout.labels);
  }
};

/// Loads the hashes.
__device__ inline void load_hashes(const HammingBlock& block) {
  const HammingSequence& sequence = block.sequence;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int whole_rows = static_cast<int>(round_up(block.rows, 16 * kMostHashTiles));
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
