#pragma once

// The iterations of hamming_cluster.cuh on Hopper, by warpgroups.
//
// Assignment: a warpgroup multiplies 64 hashes by 64 centroids at a time (primitives/wgmma.cuh). A
// bit of a hash becomes a byte of 0, or of 16, 32, 64 or 128 by its place: four of them are then
// the upper half of each byte of the hash, masked. The byte of the centroid makes up for that:
// +-64, 32, 16 or 8. The products of 64 bits sum up to 1024 (2 |h and c| - |h|), which with the
// cluster's bias 1024 (1 - |c|) - 1 - c is -1024 times the distance, and the place from the end:
// the largest sum names the nearest cluster, ties at the lowest.
//
// Update: with the word that it has counted, a block sends its counts to the blocks that update the
// centroids; none waits for what it reads from another.
//
// Limits: those of hamming_cluster.cuh, and the counts of all blocks for a share of the clusters.

#include "cuda/hamming_cluster.cuh"
#include "cuda/primitives/wgmma.cuh"

namespace cluster_attention::cuda {

#if CA_HAS_WARPGROUP_PRODUCTS

/// A product takes two steps over 32 bits.
constexpr int kBitSteps = 2;

/// The tiles of operands begin where the swizzle repeats.
__device__ inline uint4* warpgroup_operands(const HammingBlock& block) {
  const uint32_t past = shared_address(block.operands) % 1024;
  return block.operands + (1024 - past) % 1024 / sizeof(uint4);
}

/// Sixteen of the bits of a centroid, as bytes 16 `place` .. of its row: those that a hash has at
/// place `place` of the lower halves of its bytes and of the upper ones. See mask_hashes().
__device__ inline uint4 signs_at(uint64_t centroid, int place) {
  const uint32_t size = 64u >> place;
  const auto signs = [&](uint32_t word) {
    const uint32_t bits = word >> place & 0x01010101u;
    return 0x01010101u * (256u - size) ^ bits * (256u - 2u * size);
  };
  const auto low = static_cast<uint32_t>(centroid);
  const auto high = static_cast<uint32_t>(centroid >> 32);
  return make_uint4(signs(low), signs(low >> 4), signs(high), signs(high >> 4));
}

/// Centroids and biases; two products of centroids lie side by side in a tile. Rows past the
/// clusters hold any bytes, whose sums are below 2^20: their bias makes up for them.
__device__ inline void spread_to_tiles(const HammingBlock& block) {
  uint4* operands = warpgroup_operands(block);
#pragma unroll 1
  for (int i = threadIdx.x; i < block.clusters * 4; i += blockDim.x) {
    const int c = i / 4;
    const int place = i % 4;
    const uint64_t centroid = block.centroids[c];
    const int product = c / kWarpgroupCentroids;
    const int row = product / 2 * kWarpgroupCentroids + c % kWarpgroupCentroids;
    operands[swizzled(row, product % 2 * 4 + place) / 8] = signs_at(centroid, place);
    if (place == 0) {
      block.biases[c] = kSumScale * (1 - __popcll(centroid)) - 1 - c;
    }
  }
  const int padded =
      (block.clusters + kWarpgroupCentroids - 1) / kWarpgroupCentroids * kWarpgroupCentroids;
#pragma unroll 1
  for (int c = block.clusters + threadIdx.x; c < padded; c += blockDim.x) {
    block.biases[c] = kNoCluster;
  }
  publish_to_tensor_cores();
}

/// Two tiles of hashes of a warp as first operands, for both steps: lane (group, chunk) has, of
/// hashes `group` and `group` + 8, lower (chunk even) or upper halves of the bytes of one word.
__device__ inline void mask_hashes(const uint64_t* hashes, uint32_t (&a)[2][kBitSteps][4]) {
  const int group = lane_index() / 4;
  const int chunk = lane_index() % 4;
  const int shift = chunk % 2 == 0 ? 4 : 0;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t hash = hashes[hash_of<2>(tile, half, group)];
      const uint32_t word = static_cast<uint32_t>(chunk < 2 ? hash : hash >> 32) << shift;
#pragma unroll
      for (int place = 0; place < 4; ++place) {
        a[tile][place / 2][place % 2 * 2 + half] = word & 0x10101010u << place;
      }
    }
#pragma unroll
    for (int step = 0; step < kBitSteps; ++step) hold(a[tile][step]);  // in registers side by side
  }
}

/// Starts the product of a tile of hashes and 64 centroids.
__device__ inline void multiply_hashes(int32_t (&sums)[32], const uint32_t (&a)[kBitSteps][4],
                                       uint32_t operands, int product) {
  const int begin = product / 2 * (kWarpgroupCentroids * 128) + product % 2 * 64;
#pragma unroll
  for (int step = 0; step < kBitSteps; ++step) {
    multiply_bytes(sums, a[step], describe_tile(operands, begin + 32 * step), step > 0);
  }
  commit_products();
}

/// Biases of the centroids that a lane has sums for.
using LaneBiases = int2[kWarpgroupCentroids / 8];

/// The largest of the sums of `count` centroids at most, for both hashes of the lane.
__device__ inline void keep_largest(const int32_t (&sums)[32], const LaneBiases& biases, int count,
                                    int32_t (&best)[2]) {
#pragma unroll
  for (int n = 0; n < kWarpgroupCentroids / 8; ++n) {
    if (8 * n >= count) break;
    best[0] = larger_sum(sums[4 * n], biases[n].x, best[0]);
    best[1] = larger_sum(sums[4 * n + 2], biases[n].x, best[1]);
    best[0] = larger_sum(sums[4 * n + 1], biases[n].y, best[0]);
    best[1] = larger_sum(sums[4 * n + 3], biases[n].y, best[1]);
  }
}

/// best[tile][half]: the largest sum of the hash over all clusters, in every lane of its group.
__device__ inline void find_largest_of_products(const HammingBlock& block,
                                                uint32_t (&a)[2][kBitSteps][4],
                                                int32_t (&best)[2][2]) {
  const uint32_t operands = locate_tile(warpgroup_operands(block));
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) best[tile][0] = best[tile][1] = kNoCluster;
  const int products = (block.clusters + kWarpgroupCentroids - 1) / kWarpgroupCentroids;
#pragma unroll 1
  for (int product = 0; product < products; ++product) {
    const int first = product * kWarpgroupCentroids;
    const int count = block.clusters - first;
    int32_t sums[2][32];
    begin_products();
    multiply_hashes(sums[0], a[0], operands, product);
    multiply_hashes(sums[1], a[1], operands, product);
    LaneBiases biases;  // on their way while the tensor cores work
    const auto* from = reinterpret_cast<const int2*>(block.biases + first) + lane_index() % 4;
#pragma unroll
    for (int n = 0; n < kWarpgroupCentroids / 8; ++n) biases[n] = from[4 * n];
    wait_products<1>();
    hold(sums[0]);
    keep_largest(sums[0], biases, count, best[0]);
    wait_products<0>();
    hold(sums[1]);
    keep_largest(sums[1], biases, count, best[1]);
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) best[tile][half] = warp_max(best[tile][half], 4);
  }
}

/// Cluster c is updated by block c modulo `parts`, as its c / parts.
__device__ inline int largest_share(const HammingBlock& block) {
  return (block.clusters + block.parts - 1) / block.parts;
}
__device__ inline int own_share(const HammingBlock& block) {
  return (block.clusters - block.rank + block.parts - 1) / block.parts;
}

/// Sends what this block has counted to those who update.
__device__ inline void send_counts(const HammingBlock& block, int64_t updates) {
  constexpr int kPieces = 32 * sizeof(uint32_t) / sizeof(uint4);
  const int first = block.rank * largest_share(block);  // place of its counts, with each of them
  auto* told_pairs = reinterpret_cast<uint4*>(block.told_pairs);
  const auto* pairs = reinterpret_cast<const uint4*>(block.pairs);
#pragma unroll 1
  for (int i = threadIdx.x; i < block.clusters * kPieces; i += blockDim.x) {
    const int c = i / kPieces;
    const int piece = i % kPieces;
    const int rank = c % block.parts;
    const int place = first + c / block.parts;
    block.word.send(updates, &told_pairs[place * kPieces + piece], rank, pairs[i]);
    if (piece == 0) {
      block.word.send(updates, &block.told_members[place], rank, block.members[c]);
    }
  }
}

/// How warpgroups iterate.
struct WarpgroupHamming {
  static constexpr bool kWarpgroups = true;

  __device__ static void spread(const HammingBlock& block) { spread_to_tiles(block); }

  /// Labels all hashes of the block and counts; true in the threads that saw a label change.
  __device__ static bool assign(const HammingBlock& block, bool last) {
    // The warps of a warpgroup go round together: the same index, and hashes padded to whole
    // rounds.
    const int group = shuffle(static_cast<int>(threadIdx.x) / kWarpgroup, 0);
    const int groups = static_cast<int>(blockDim.x) / kWarpgroup;
    bool changed = false;
#pragma unroll 1
    for (int i = group; i * kWarpgroupHashes < block.whole_rows; i += groups) {
      const int first = i * kWarpgroupHashes + warp_index() % 4 * 32;
      uint32_t a[2][kBitSteps][4];
      int32_t best[2][2];
      mask_hashes(block.hashes + first, a);
      find_largest_of_products(block, a, best);
      changed = label_hashes(block, first, best, last) || changed;
    }
    return changed;
  }

  __device__ static bool tell(const HammingBlock& block, int64_t updates, bool changed) {
    constexpr int kClusterBytes = 33 * sizeof(uint32_t);
    return any_block_changed(block, updates, changed, own_share(block) * kClusterBytes,
                             [&] { send_counts(block, updates); });
  }

  /// The new centroids of this block's share of the clusters.
  __device__ static void update(const HammingBlock& block, int64_t updates) {
    const int lane = lane_index();
    const int most = largest_share(block);
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int place = warp_index(); place < own_share(block); place += warps) {
      uint32_t pair[kMostHammingParts];
#pragma unroll
      for (int rank = 0; rank < kMostHammingParts; ++rank) {
        pair[rank] = rank < block.parts ? block.told_pairs[(rank * most + place) * 32 + lane] : 0u;
      }
      const uint32_t members = lane < block.parts ? block.told_members[lane * most + place] : 0u;
      update_centroid(block, updates, block.rank + place * block.parts, pair,
                      static_cast<int32_t>(warp_sum(members)));
    }
  }
};

#endif  // CA_HAS_WARPGROUP_PRODUCTS

}  // namespace cluster_attention::cuda
