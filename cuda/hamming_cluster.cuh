#pragma once

// All iterations of Hamming k-means in one launch: a cluster of 1..16 blocks owns a sequence and
// keeps its hashes, labels, centroids and counters on chip.
//
// Assignment: a cluster is the nearer, the larger 2 |h and c| - |c|, counts of set bits; tensor
// cores count the common ones. A byte holds two bits of a hash, as digits to the base of 128, and
// the same two of a centroid, the other way round: of the product of 64 bits, which takes 32 bytes,
// the middle one of three digits is |h and c|, and the last one is at most 32.
//
// Update: a block counts the bits of its members by moving those of hashes whose label has changed
// from cluster to cluster; before the first iteration they are in none. Blocks send each other word
// when they have counted; a warp then adds the counts of all blocks for one centroid, and sends it
// to all. Integers only: the order does not matter.
//
// Limits: kClusterHammingClusters, hashes of a block within shared memory and 16 bits.

#include "cuda/hamming_block.cuh"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/integer_mma.cuh"
#include "cuda/primitives/largest.cuh"

namespace cluster_attention::cuda {

/// A sum is kSumScale (2 |h and c| - |c|), plus the place of the cluster from the end: the largest
/// one names the nearest cluster, ties at the lowest.
constexpr int32_t kSumScale = 1024;
constexpr int32_t kNoCluster = -(1 << 29);  // less than every sum
static_assert(kSumScale >= kClusterHammingClusters, "a sum has room for the place");

/// The middle digit lies in its product as kPlaces (2 |h and c|): at first a sum has room for the
/// places of so many clusters.
constexpr int32_t kPlaces = 64;
constexpr int32_t kMiddleDigit = 127 << 7;
constexpr int kPlacedTiles = kPlaces / 8;
constexpr int32_t kNoPlace = -(1 << 20);  // less than every such sum

/// Bytes `chunk` of four of an operand: bits of `first` as 1, those of `second` as 128.
__device__ inline uint2 digits_of(uint32_t first, uint32_t second, int chunk) {
  const uint32_t ones = first >> chunk;
  const uint32_t upper = second >> chunk;
  return make_uint2((ones & 0x01010101u) | (upper << 7 & 0x80808080u),
                    (ones >> 4 & 0x01010101u) | (upper << 3 & 0x80808080u));
}

/// What a sum over the places starts from.
__device__ inline int32_t bias_of(const HammingBlock& block, int c) {
  if (c >= block.clusters) return kNoPlace;
  return kPlaces - 1 - c % kPlaces - kPlaces * __popcll(block.centroids[c]);
}

/// All centroids as second operands of mma_u8_16x8x32, each with the biases of the two columns that
/// the lane has sums for.
__device__ inline void spread_centroids(const HammingBlock& block) {
#pragma unroll 1
  for (int i = threadIdx.x; i < (block.clusters + 7) / 8 * kWarp; i += blockDim.x) {
    const int c = i / 4;
    const uint64_t centroid = block.centroids[c < block.clusters ? c : 0];
    const uint2 digits =
        digits_of(static_cast<uint32_t>(centroid >> 32), static_cast<uint32_t>(centroid), i % 4);
    const int column = i / kWarp * 8 + i % 4 * 2;
    block.operands[i] =
        make_uint4(digits.x, digits.y, static_cast<uint32_t>(bias_of(block, column)),
                   static_cast<uint32_t>(bias_of(block, column + 1)));
  }
}

/// The hash that row `group` + 8 half of tile `tile` of a warp is: neighbours are in one lane, or
/// in lanes side by side.
template <int kTiles>
__device__ inline int hash_of(int tile, int half, int group) {
  return (half * 8 + group) * kTiles + tile;
}

/// kTiles tiles of 16 hashes as first operands.
template <int kTiles>
__device__ inline void spread_hashes(const uint64_t* hashes, uint32_t (&a)[kTiles][4]) {
  const int group = lane_index() / 4;
  const int chunk = lane_index() % 4;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t hash = hashes[hash_of<kTiles>(tile, half, group)];
      const uint2 digits =
          digits_of(static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32), chunk);
      a[tile][half] = digits.x;
      a[tile][2 + half] = digits.y;
    }
  }
}

/// A sum over places as one over all clusters; `first`: that of place 0.
__device__ inline int32_t sum_of_places(int32_t sum, int first) {
  const int32_t place = sum & (kPlaces - 1);
  return (sum - place) * (kSumScale / kPlaces) + place + kSumScale - kPlaces - first;
}

/// best[tile][half]: the largest sum of the hash over all clusters, in every lane of its group.
template <int kTiles>
__device__ inline void find_largest_sums(const HammingBlock& block, const uint32_t (&a)[kTiles][4],
                                         int32_t (&best)[kTiles][2]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) best[tile][0] = best[tile][1] = kNoCluster;
  const int tiles = (block.clusters + 7) / 8;
  const uint4* operands = block.operands + lane_index();
  uint4 next = operands[0];
#pragma unroll 1
  for (int first = 0; first < tiles; first += kPlacedTiles) {
    const int end = min(first + kPlacedTiles, tiles);
    int32_t largest[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) largest[tile][0] = largest[tile][1] = kNoPlace;
#pragma unroll 4
    for (int t = first; t < end; ++t) {
      const uint4 operand = next;
      next = operands[(t + 1) * kWarp];  // there is one more than tiles
      const uint32_t digits[2] = {operand.x, operand.y};
      const int32_t biases[2] = {static_cast<int32_t>(operand.z), static_cast<int32_t>(operand.w)};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        int32_t sum[4];
        mma_u8_16x8x32(sum, a[tile], digits);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int32_t& mine = largest[tile][i / 2];
          mine = larger_sum(sum[i] & kMiddleDigit, biases[i % 2], mine);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        best[tile][half] = max(best[tile][half], sum_of_places(largest[tile][half], 8 * first));
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[tile][half] = warp_max(best[tile][half], 4);
    }
  }
}

/// A new label for a hash per lane (`valid`), which joins the moves of the warp where it is another
/// one, unless it is the `last`; returns their number. All lanes of the warp call it.
__device__ inline int relabel(const HammingBlock& block, int row, int label, bool valid,
                              bool last) {
  const int before = valid ? block.labels[row] : label;
  const bool moves = before != label;
  const uint32_t movers = ballot(moves);
  if (moves) {
    block.labels[row] = static_cast<uint16_t>(label);
    atomicAdd(&block.members[label], 1u);
    if (before != block.clusters) atomicAdd(&block.members[before], ~0u);
    if (!last) {
      const uint64_t hash = block.hashes[row];
      block.moves[__popc(movers & ((1u << lane_index()) - 1u))] =
          make_uint4(static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32),
                     static_cast<uint32_t>(before * 32), static_cast<uint32_t>(label * 32));
    }
  }
  return __popc(movers);
}

/// Moves the bits of `count` hashes; all lanes of the warp call it.
__device__ inline void move_hamming_bits(const HammingBlock& block, int count) {
  constexpr int kAtOnce = 4;
  const int lane = lane_index();
  const auto none = static_cast<uint32_t>(block.clusters * 32);
  // The last step moves no bits where there are fewer hashes.
  if (lane < (kAtOnce - count % kAtOnce) % kAtOnce) {
    block.moves[count + lane] = make_uint4(0, 0, 0, 0);
  }
  __syncwarp();
  for (int first = 0; first < count; first += kAtOnce) {
    uint4 moves[kAtOnce];  // read before the counters change: they might be the same to a compiler
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) moves[i] = block.moves[first + i];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const uint4 move = moves[i];
      const uint32_t bits = (move.x >> lane & 1u) | (move.y >> lane & 1u) << 16;
      // Halves never fall below 0, so that what is borrowed is given back.
      if (move.z != none) atomicAdd(&block.pairs[move.z + lane], 0u - bits);
      atomicAdd(&block.pairs[move.w + lane], bits);
    }
  }
  __syncwarp();
}

/// Labels kTiles tiles of a warp from `first` on, by their largest sums; true where a label has
/// changed.
template <int kTiles>
__device__ bool label_hashes(const HammingBlock& block, int first, const int32_t (&best)[kTiles][2],
                             bool last) {
  // Lane `four` of a group takes one of its hashes: of one tile only the first two lanes.
  const int group = lane_index() / 4;
  const int four = lane_index() % 4;
  const int half = four / kTiles % 2;
  int32_t sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) sums[i] = four % kTiles == 0 ? best[0][i] : best[kTiles - 1][i];
  const int row = first + hash_of<kTiles>(four % kTiles, half, group);
  const bool valid = row < block.rows && four < 2 * kTiles;
  const int label = kSumScale - 1 - ((half == 0 ? sums[0] : sums[1]) & (kSumScale - 1));
  const int moves = relabel(block, row, label, valid, last);
  if (!last && moves > 0) move_hamming_bits(block, moves);
  return moves > 0;
}

/// Labels all hashes of the block and counts; true in the threads that saw a label change.
template <int kTiles>
__device__ bool assign_on_tensor_cores(const HammingBlock& block, bool last) {
  const int step = 16 * kTiles * static_cast<int>(blockDim.x) / kWarp;
  bool changed = false;
  for (int first = 16 * kTiles * warp_index(); first < block.rows; first += step) {
    uint32_t a[kTiles][4];
    int32_t best[kTiles][2];
    spread_hashes<kTiles>(block.hashes + first, a);
    find_largest_sums<kTiles>(block, a, best);
    changed = label_hashes(block, first, best, last) || changed;
  }
  return changed;
}

/// Members of a cluster in all blocks; all lanes of the warp call it.
__device__ inline int32_t members_of_all(const HammingBlock& block, int c) {
  const int lane = lane_index();
  const uint32_t members =
      lane < block.parts ? load_in_block(block.window, &block.members[c], lane) : 0;
  return static_cast<int32_t>(warp_sum(members));
}

/// The new centroid of a cluster, by the counts of all blocks for bits `lane` and `lane` + 32, to
/// all blocks. Without members it stays as it is. All lanes of the warp call it.
__device__ inline void update_centroid(const HammingBlock& block, int64_t updates, int c,
                                       const uint32_t (&pair)[kMostHammingParts], int32_t members) {
  const int lane = lane_index();
  int32_t low = 0;
  int32_t high = 0;
#pragma unroll
  for (int rank = 0; rank < kMostHammingParts; ++rank) {
    low += static_cast<int32_t>(pair[rank] & 0xffffu);
    high += static_cast<int32_t>(pair[rank] >> 16);
  }
  const uint64_t centroid = members > 0 ? majority(low, high, members) : block.centroids[c];
  __syncwarp();  // all lanes have read what may change once this is sent
  if (lane < block.parts) block.new_centroids.send(updates, &block.centroids[c], lane, centroid);
}

/// The new centroids of this block's share of the clusters.
__device__ inline void update_centroids(const HammingBlock& block, int64_t updates) {
  const int lane = lane_index();
  const int step = block.parts * static_cast<int>(blockDim.x) / kWarp;
  for (int c = block.rank + block.parts * warp_index(); c < block.clusters; c += step) {
    uint32_t pair[kMostHammingParts];
#pragma unroll
    for (int rank = 0; rank < kMostHammingParts; ++rank) {
      pair[rank] =
          rank < block.parts ? load_in_block(block.window, &block.pairs[c * 32 + lane], rank) : 0;
    }
    update_centroid(block, updates, c, pair, members_of_all(block, c));
  }
}

/// Labels, and this block's share of counts and centroids.
__device__ inline void store_hamming_block(const HammingParams& params, const HammingBlock& block,
                                           int64_t updates) {
  const HammingSequence& sequence = block.sequence;
#pragma unroll 1
  for (int i = threadIdx.x; i < block.rows; i += blockDim.x) {
    sequence.labels[block.range.begin + i] = block.labels[i];
  }
  const int step = block.parts * static_cast<int>(blockDim.x) / kWarp;
  for (int c = block.rank + block.parts * warp_index(); c < block.clusters; c += step) {
    const int32_t members = members_of_all(block, c);
    if (lane_index() != 0) continue;
    sequence.counts[c] = members;
    sequence.centroids[c] = block.centroids[c];
  }
  if (threadIdx.x == 0 && block.rank == 0 && params.problem.iterations != nullptr) {
    params.problem.iterations[sequence.index] = static_cast<int32_t>(updates);
  }
}

/// Whether a label of the sequence has changed; every block hears it from every other, and with it
/// what send_more() sends, of which this block gets `more` bytes from each.
template <typename SendMore>
__device__ bool any_block_changed(const HammingBlock& block, int64_t updates, bool changed,
                                  int more, const SendMore& send_more) {
  fence_block();
  const bool here = __syncthreads_or(changed) != 0;  // all of the block is counted, for others too
  uint32_t* words = block.changed + updates % 2 * kMostHammingParts;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    block.word.expect(updates, block.parts * (static_cast<int>(sizeof(uint32_t)) + more));
  }
  if (thread < block.parts) block.word.send(updates, &words[block.rank], thread, here ? 1u : 0u);
  send_more();
  block.word.wait(updates);
  return any(lane_index() < block.parts && words[lane_index()] != 0);
}

/// How warps iterate, each with products of its own.
template <int kTiles>
struct WarpHamming {
  static constexpr bool kWarpgroups = false;

  __device__ static void spread(const HammingBlock& block) { spread_centroids(block); }
  __device__ static bool assign(const HammingBlock& block, bool last) {
    return assign_on_tensor_cores<kTiles>(block, last);
  }
  __device__ static bool tell(const HammingBlock& block, int64_t updates, bool changed) {
    return any_block_changed(block, updates, changed, 0, [] {});
  }
  __device__ static void update(const HammingBlock& block, int64_t updates) {
    update_centroids(block, updates);
  }
};

/// All iterations of a block that has been started; returns the number of updates. The members of
/// other blocks may be read until the next sync_cluster().
template <typename Steps>
__device__ int64_t iterate_hamming(const HammingParams& params, const HammingBlock& block) {
  sync_cluster();  // all can be sent to
  for (int64_t updates = 0;; ++updates) {
    Steps::spread(block);
    __syncthreads();
    const bool last = updates == params.problem.max_iterations;
    const bool changed = Steps::assign(block, last);
    if (last) break;
    // Where no label has changed, the centroids are those that there are.
    if (!Steps::tell(block, updates, changed)) return updates;
    if (threadIdx.x == 0) {
      block.new_centroids.expect(updates, block.clusters * static_cast<int>(sizeof(uint64_t)));
    }
    Steps::update(block, updates);
    block.new_centroids.wait(updates);
  }
  sync_cluster();
  return params.problem.max_iterations;
}

}  // namespace cluster_attention::cuda
