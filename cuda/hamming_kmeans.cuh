#pragma once

// K-means of hashes in Hamming space: assign each hash to the nearest centroid (popcount of xor;
// tie: lowest cluster), set each centroid bit to the majority of its members (tie: 0).
//
// Method: centroids in shared memory, a hash per thread. Bits are counted on chip: of each hash of
// a warp, lane b counts bits b and b + 32 of the hash in the two halves of one counter.
// A launch to start, then one per iteration, since only the end of a launch orders what many blocks
// have counted; the last block of a sequence updates its centroids. Launches after the fixpoint
// return at once. Sequences that a cluster of blocks can hold need one launch: hamming_cluster.cuh.
// All counting is in integers: the order of atomics does not matter.
// Limits: any length and number of clusters. Counters that do not fit on chip are kept in memory.

#include "cuda/hamming_kmeans.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/primitives/warp.cuh"
#include "native/core/random.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

/// Centroids that are in shared memory at a time.
constexpr int kHammingTile = 1024;
constexpr int kHammingBits = 64;
/// Hashes that a block may count in the 16 bits of half a counter.
constexpr int64_t kHammingPartRows = 65535;
constexpr int kHammingThreads = 1024;

/// Shared memory of a block: offsets in bytes.
struct HammingLayout {
  int64_t pairs;    // uint32 (clusters,32): bits b | bits b + 32 << 16
  int64_t members;  // int32 (clusters)
  int64_t flags;    // int32 (2)
  int64_t bytes;

  CA_HOST_DEVICE HammingLayout(int64_t clusters, bool shared_counters) {
    const int64_t counted = shared_counters ? clusters : 0;
    pairs = kHammingTile * static_cast<int64_t>(sizeof(uint64_t));
    members = pairs + counted * 32 * static_cast<int64_t>(sizeof(uint32_t));
    flags = members + counted * static_cast<int64_t>(sizeof(int32_t));
    bytes = flags + 2 * static_cast<int64_t>(sizeof(int32_t));
  }
};

/// What the blocks of a sequence share.
struct HammingState {
  int32_t changed;  // a label has changed in this iteration
  int32_t done;     // labels, counts and centroids are final
};

struct HammingParams {
  HammingKMeansProblem problem;
  int64_t heads;     // sequences per length
  int64_t clusters;  // clamped to the length of the shape
  int64_t parts;
  int64_t iteration;    // updates before this launch
  HammingState* state;  // (batch)
  uint32_t* tickets;    // (batch), of last_block_done()
  int32_t* ones;        // (batch,clusters,kHammingBits)
  int32_t* members;     // (batch,clusters)
  Flags* flags;         // of launches of their own
  SortProblem sort;     // of hamming_sort.cuh; without `order` nothing is sorted
  int label_bits;       // of the largest label
};

/// One sequence as a block sees it.
struct HammingSequence {
  int64_t index;
  int64_t length;          // real
  int64_t clusters;        // at most length
  const uint64_t* hashes;  // (length)
  int32_t* labels;         // (length)
  int32_t* counts;         // (clusters)
  uint64_t* centroids;     // (clusters)

  __device__ HammingSequence(const HammingParams& params, int64_t sequence) {
    const HammingKMeansProblem& problem = params.problem;
    index = sequence;
    length = real_length(problem.lengths, sequence / params.heads, problem.length);
    clusters = problem.clusters < length ? problem.clusters : length;
    hashes = problem.hashes + sequence * problem.length;
    labels = problem.labels + sequence * problem.length;
    counts = problem.counts + sequence * problem.clusters;
    centroids = problem.centroids + sequence * problem.clusters;
  }
};

/// First centroids, and the values of everything past the real length and the clamp.
__device__ inline void start_hamming(const HammingParams& params, const HammingSequence& sequence) {
  const HammingKMeansProblem& problem = params.problem;
  for (int64_t c = threadIdx.x; c < problem.clusters; c += blockDim.x) {
    uint64_t centroid = 0;
    if (c < sequence.clusters) {
      centroid = problem.initial != nullptr
                     ? problem.initial[sequence.index * problem.clusters + c]
                     : sequence.hashes[random_position(problem.seed, RandomStream::start_positions,
                                                       sequence.length, c)];
    }
    sequence.centroids[c] = centroid;
    sequence.counts[c] = 0;
  }
  for (int64_t i = sequence.length + threadIdx.x; i < problem.length; i += blockDim.x) {
    sequence.labels[i] = -1;
  }
}

__device__ inline int hamming_distance(uint64_t a, uint64_t b) { return __popcll(a ^ b); }

/// The nearest of all centroids to one hash per thread; all threads of the block call it. The tile
/// is loaded again only where there are more centroids than it holds.
__device__ inline int32_t nearest_centroid(uint64_t hash, const HammingSequence& sequence,
                                           uint64_t* tile) {
  int32_t nearest = 0;
  int best = kHammingBits + 1;
  for (int64_t first = 0; first < sequence.clusters; first += kHammingTile) {
    const int64_t left = sequence.clusters - first;
    const int count = static_cast<int>(left < kHammingTile ? left : kHammingTile);
    if (sequence.clusters > kHammingTile) {
      __syncthreads();
      for (int c = threadIdx.x; c < count; c += blockDim.x) tile[c] = sequence.centroids[first + c];
      __syncthreads();
    }
    // distance << 16 | cluster: the minimum is the nearest, ties at the lowest index.
    uint32_t minimum = ~0u;
    for (int c = 0; c < count; ++c) {
      const uint32_t candidate =
          static_cast<uint32_t>(hamming_distance(hash, tile[c])) << 16 | static_cast<uint32_t>(c);
      minimum = candidate < minimum ? candidate : minimum;
    }
    if (static_cast<int>(minimum >> 16) < best) {
      best = static_cast<int>(minimum >> 16);
      nearest = static_cast<int32_t>(first) + static_cast<int32_t>(minimum & 0xffffu);
    }
  }
  return nearest;
}

/// Adds the bits of the hashes of a warp to the counters of their clusters; label -1 is no hash.
template <bool kSharedCounters>
__device__ void count_hamming_bits(uint64_t hash, int32_t label, uint32_t* pairs, int32_t* ones) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t low = static_cast<uint32_t>(hash);
  const uint32_t high = static_cast<uint32_t>(hash >> 32);
  for (int source = 0; source < 32; ++source) {
    const int32_t cluster = shuffle(label, source);
    const uint32_t low_bit = shuffle(low, source) >> lane & 1u;
    const uint32_t high_bit = shuffle(high, source) >> lane & 1u;
    if (cluster < 0) continue;
    if constexpr (kSharedCounters) {
      if ((low_bit | high_bit) != 0) {
        atomicAdd(&pairs[cluster * 32 + lane], low_bit | high_bit << 16);
      }
    } else {
      int32_t* counter = ones + static_cast<int64_t>(cluster) * kHammingBits + lane;
      if (low_bit != 0) atomicAdd(counter, 1);
      if (high_bit != 0) atomicAdd(counter + 32, 1);
    }
  }
}

/// Assigns the hashes [begin, end) of a sequence and counts members and, unless this is the last
/// assignment, their bits. True in the threads that saw a label change.
template <bool kSharedCounters>
__device__ bool assign_hashes(const HammingSequence& sequence, int64_t begin, int64_t end,
                              bool first_time, bool last, uint64_t* tile, uint32_t* pairs,
                              int32_t* members, int32_t* ones) {
  if (sequence.clusters <= kHammingTile) {
    for (int c = threadIdx.x; c < sequence.clusters; c += blockDim.x) {
      tile[c] = sequence.centroids[c];
    }
    __syncthreads();
  }
  bool changed = false;
  for (int64_t first = begin; first < end; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    const uint64_t hash = i < end ? sequence.hashes[i] : 0;
    int32_t label = nearest_centroid(hash, sequence, tile);
    if (i < end) {
      changed = changed || first_time || sequence.labels[i] != label;
      sequence.labels[i] = label;
      atomicAdd(&members[label], 1);
    } else {
      label = -1;
    }
    if (!last) count_hamming_bits<kSharedCounters>(hash, label, pairs, ones);
  }
  return changed;
}

/// Whether more than half of the members have the bit; a warp makes a centroid of 64 counts.
__device__ inline uint64_t majority(int32_t low_ones, int32_t high_ones, int32_t members) {
  const uint32_t low = ballot(low_ones > members - low_ones);
  const uint32_t high = ballot(high_ones > members - high_ones);
  return static_cast<uint64_t>(high) << 32 | low;
}

template <typename = void>
__global__ void __launch_bounds__(kHammingThreads)
    hamming_start_kernel(const HammingParams params) {
  // block: one sequence
  const HammingSequence sequence(params, blockIdx.x);
  start_hamming(params, sequence);
  int32_t* ones = params.ones + sequence.index * params.clusters * kHammingBits;
  int32_t* members = params.members + sequence.index * params.clusters;
  for (int64_t i = threadIdx.x; i < params.clusters * kHammingBits; i += blockDim.x) ones[i] = 0;
  for (int64_t c = threadIdx.x; c < params.clusters; c += blockDim.x) members[c] = 0;
  if (threadIdx.x == 0) params.state[sequence.index] = HammingState{0, 0};
}

/// The end of an iteration, in the last block of a sequence: its final counts, or new centroids and
/// counters for the next launch.
__device__ inline void finish_hamming_iteration(const HammingParams& params,
                                                const HammingSequence& sequence, int32_t* ones,
                                                int32_t* members) {
  HammingState& state = params.state[sequence.index];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool last = params.iteration == params.problem.max_iterations;
  const bool settled = last || state.changed == 0;
  __syncthreads();  // before the flag is cleared
  if (settled) {
    for (int64_t c = threadIdx.x; c < sequence.clusters; c += blockDim.x) {
      sequence.counts[c] = members[c];
    }
    if (threadIdx.x != 0) return;
    state.done = 1;
    atomicAdd(&params.flags->settled, 1u);
    if (params.problem.iterations != nullptr) {
      params.problem.iterations[sequence.index] = static_cast<int32_t>(params.iteration);
    }
    return;
  }
  for (int64_t c = warp; c < sequence.clusters; c += blockDim.x / 32) {
    int32_t* low = ones + c * kHammingBits + lane;
    const int32_t count = members[c];
    const uint64_t centroid = majority(low[0], low[32], count);
    __syncwarp();
    low[0] = 0;
    low[32] = 0;
    if (lane != 0) continue;
    members[c] = 0;
    if (count > 0) sequence.centroids[c] = centroid;
  }
  if (threadIdx.x == 0) state.changed = 0;
}

/// One assignment, and the update after it.
template <bool kSharedCounters>
__global__ void __launch_bounds__(kHammingThreads)
    hamming_iteration_kernel(const HammingParams params) {
  // block: hashes (length / parts) -> labels; the last block: counters -> centroids (clusters)
  const HammingLayout layout(params.clusters, kSharedCounters);
  char* memory = dynamic_shared<char>();
  uint64_t* tile = reinterpret_cast<uint64_t*>(memory);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(memory + layout.pairs);
  int32_t* shared_members = reinterpret_cast<int32_t*>(memory + layout.members);
  uint32_t* shared_flags = reinterpret_cast<uint32_t*>(memory + layout.flags);
  const HammingSequence sequence(params, blockIdx.x / params.parts);
  HammingState& state = params.state[sequence.index];
  int32_t* ones = params.ones + sequence.index * params.clusters * kHammingBits;
  int32_t* members = params.members + sequence.index * params.clusters;
  if (state.done != 0) return;

  if constexpr (kSharedCounters) {
    for (int64_t i = threadIdx.x; i < sequence.clusters * 32; i += blockDim.x) pairs[i] = 0;
    for (int64_t c = threadIdx.x; c < sequence.clusters; c += blockDim.x) shared_members[c] = 0;
    __syncthreads();
  }
  const bool last = params.iteration == params.problem.max_iterations;
  const int64_t part = blockIdx.x % params.parts;
  const Range rows = split(sequence.length, params.parts, part);
  const bool changed =
      assign_hashes<kSharedCounters>(sequence, rows.begin, rows.end, params.iteration == 0, last,
                                     tile, pairs, kSharedCounters ? shared_members : members, ones);
  if (any(changed) && threadIdx.x % 32 == 0) atomicOr(&state.changed, 1);
  if constexpr (kSharedCounters) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < sequence.clusters * 32; i += blockDim.x) {
      int32_t* counter = ones + i / 32 * kHammingBits + i % 32;
      if ((pairs[i] & 0xffffu) != 0) atomicAdd(counter, static_cast<int32_t>(pairs[i] & 0xffffu));
      if (pairs[i] >> 16 != 0) atomicAdd(counter + 32, static_cast<int32_t>(pairs[i] >> 16));
    }
    for (int64_t c = threadIdx.x; c < sequence.clusters; c += blockDim.x) {
      if (shared_members[c] != 0) atomicAdd(members + c, shared_members[c]);
    }
  }
  if (!last_block_done(&params.tickets[sequence.index], static_cast<uint32_t>(params.parts),
                       shared_flags))
    return;
  finish_hamming_iteration(params, sequence, ones, members);
}

}  // namespace cluster_attention::cuda
