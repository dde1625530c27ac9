#pragma once

// The best of a long list by one block.
//
// Method: few of a list are wanted, so the best of each thread's share are sampled: what as many of
// them reach as there are candidates wanted is a bound that few others reach, and those are ranked
// by comparing all with all. Where too many reach it (equal scores), a part of the list at a time
// is held in registers, and the key that the last one chosen has is bisected bit by bit by counting
// the keys that are not below; where that key occurs more often than there is room, likewise the
// index. What has been chosen so far joins the next part. Nothing depends on the order of the
// threads: candidates are distinct (native/core/order.h).

#include "cuda/primitives/warp.cuh"
#include "native/core/order.h"

namespace cluster_attention::cuda {

constexpr int kBlockSelectionThreads = 1024;
constexpr int kBlockSelectionWarps = kBlockSelectionThreads / kWarp;

class BlockSelection {
 public:
  static constexpr int kKeys = 16;  // of a thread, of each part
  static constexpr int kChosen = 2;
  static constexpr int64_t kPart = kKeys * kBlockSelectionThreads;
  /// The most that can be chosen.
  static constexpr int64_t kMost = kChosen * kBlockSelectionThreads;

  /// The most that run_quickly() chooses, and chooses from.
  static constexpr int64_t kMostQuickly = 512;
  static constexpr int kRoom = 1024;

  struct Scratch {
    int32_t counts[2][kBlockSelectionWarps];
    int32_t taken;
    int32_t ranks[kRoom];
    unsigned long long room[kRoom];
  };

  __device__ explicit BlockSelection(Scratch& scratch) : scratch_(scratch) {}

  /// The best `size` of `length` scores, the best first, visible to all. 1 <= size <= length and
  /// kMostQuickly. A key that `size` threads have one not below of is a lower bound of the last one
  /// chosen, which few others reach; false, and nothing, where too many do.
  __device__ bool run_quickly(const float* scores, int64_t length, int size,
                              unsigned long long* candidates) {
    collect(scores, length, bound_of(scores, length, size));
    const bool fits = scratch_.taken <= kRoom;
    __syncthreads();  // all have seen it
    if (!fits) return false;
    rank(size, candidates);
    return true;
  }

  /// The best `size` of `length` scores in any order, visible to all; 1 <= size <= length, kMost.
  __device__ void run(const float* scores, int64_t length, int size,
                      unsigned long long* candidates) {
    for (int64_t first = 0; first < length; first += kPart) {
      first_ = first;
      load(scores, length, first > 0 ? size : 0, candidates);
      if (threadIdx.x == 0) scratch_.taken = 0;
      find_key(size);
      if (kept_ > size) find_index(size);
      __syncthreads();  // what was chosen before is in registers
      take(candidates);
      __syncthreads();
    }
  }

 private:
  __device__ static uint32_t bound_of(const float* scores, int64_t length, int size) {
    uint32_t largest = 0;
#pragma unroll 8  // loads do not wait for each other
    for (int64_t i = threadIdx.x; i < length; i += kBlockSelectionThreads) {
      const uint32_t key = ordered_key(scores[i]);
      largest = key > largest ? key : largest;
    }
    uint32_t bound = 0;
    int found = kBlockSelectionThreads;
    for (int bit = 31; bit >= 0 && found > size + size / 8; --bit) {
      const uint32_t trial = bound | 1u << bit;
      const int reached = __syncthreads_count(largest >= trial ? 1 : 0);
      if (reached < size) continue;
      bound = trial;
      found = reached;
    }
    return bound;
  }

  /// All that reach the bound, as far as there is room.
  __device__ void collect(const float* scores, int64_t length, uint32_t bound) {
    constexpr int kLoads = 8;
    if (threadIdx.x == 0) scratch_.taken = 0;
    scratch_.ranks[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t first = threadIdx.x; first < length; first += kLoads * kBlockSelectionThreads) {
      uint32_t key[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64_t at = first + i * kBlockSelectionThreads;
        key[i] = at < length ? ordered_key(scores[at]) : 0;
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (key[i] == 0 || key[i] < bound) continue;
        const int place = atomicAdd(&scratch_.taken, 1);
        const auto index = static_cast<uint32_t>(first + i * kBlockSelectionThreads);
        if (place < kRoom) {
          scratch_.room[place] = static_cast<unsigned long long>(key[i]) << 32 | ~index;
        }
      }
    }
    __syncthreads();
  }

  /// Each of those collected to its place, which is how many are better: warps share the counting.
  __device__ void rank(int size, unsigned long long* candidates) {
    const int thread = static_cast<int>(threadIdx.x);
    const int taken = scratch_.taken;
    int width = kWarp;
    while (width < taken) width *= 2;
    const int own = thread % width;
    if (own < taken) {
      const unsigned long long candidate = scratch_.room[own];
      int better = 0;
      for (int i = thread / width; i < taken; i += kBlockSelectionThreads / width) {
        better += scratch_.room[i] > candidate ? 1 : 0;
      }
      if (better > 0) atomicAdd(&scratch_.ranks[own], better);
    }
    __syncthreads();
    if (thread < taken && scratch_.ranks[thread] < size) {
      candidates[scratch_.ranks[thread]] = scratch_.room[thread];
    }
    __syncthreads();
  }

  /// Keys of a part, and what the parts before have left; 0 is no key of a number.
  __device__ void load(const float* scores, int64_t length, int chosen,
                       const unsigned long long* candidates) {
    const int64_t rest = length - first_;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int64_t at = i * kBlockSelectionThreads + threadIdx.x;
      key_[i] = at < rest ? ordered_key(scores[first_ + at]) : 0;
    }
#pragma unroll
    for (int i = 0; i < kChosen; ++i) {
      const int at = i * kBlockSelectionThreads + static_cast<int>(threadIdx.x);
      chosen_[i] = at < chosen ? candidates[at] : 0;
    }
  }

  __device__ static uint32_t key_of(unsigned long long candidate) {
    return static_cast<uint32_t>(candidate >> 32);
  }
  /// The lower half of a candidate: larger for lower indices.
  __device__ uint32_t rank_of(int i) const {
    return ~static_cast<uint32_t>(first_ + i * kBlockSelectionThreads + threadIdx.x);
  }

  /// How many of all threads' numbers satisfy a condition, of which this one has `mine`.
  __device__ int count(int mine) {
    int32_t* counts = scratch_.counts[round_++ % 2];
    mine = warp_sum(mine);
    if (lane_index() == 0) counts[warp_index()] = mine;
    __syncthreads();
    return warp_sum(counts[lane_index()]);
  }

  template <typename Condition>
  __device__ int count_keys(const Condition& condition) {
    int mine = 0;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) mine += condition(key_[i]) ? 1 : 0;
#pragma unroll
    for (int i = 0; i < kChosen; ++i) mine += condition(key_of(chosen_[i])) ? 1 : 0;
    return count(mine);
  }

  /// The largest key with at least `size` keys that are not below it, or one that has just `size`.
  __device__ void find_key(int size) {
    key_limit_ = 0;
    rank_limit_ = 0;
    kept_ = size + 1;
    for (int bit = 31; bit >= 0 && kept_ != size; --bit) {
      const uint32_t trial = key_limit_ | 1u << bit;
      const int found = count_keys([=](uint32_t key) { return key >= trial; });
      if (found < size) continue;
      key_limit_ = trial;
      kept_ = found;
    }
  }

  /// Which of the candidates that share the last key stay: those of the lowest indices.
  __device__ void find_index(int size) {
    const uint32_t limit = key_limit_;
    const int above = count_keys([=](uint32_t key) { return key > limit; });
    int kept = kept_ - above;
    for (int bit = 31; bit >= 0 && kept != size - above; --bit) {
      const uint32_t trial = rank_limit_ | 1u << bit;
      int mine = 0;
#pragma unroll
      for (int i = 0; i < kKeys; ++i) mine += key_[i] == limit && rank_of(i) >= trial ? 1 : 0;
#pragma unroll
      for (int i = 0; i < kChosen; ++i) {
        const bool equal = key_of(chosen_[i]) == limit;
        mine += equal && static_cast<uint32_t>(chosen_[i]) >= trial ? 1 : 0;
      }
      const int found = count(mine);
      if (found < size - above) continue;
      rank_limit_ = trial;
      kept = found;
    }
  }

  __device__ void take(unsigned long long* candidates) {
    const unsigned long long limit =
        static_cast<unsigned long long>(key_limit_) << 32 | rank_limit_;
    const auto offer = [&](unsigned long long candidate) {
      if (candidate >= limit) candidates[atomicAdd(&scratch_.taken, 1)] = candidate;
    };
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      if (key_[i] != 0) offer(static_cast<unsigned long long>(key_[i]) << 32 | rank_of(i));
    }
#pragma unroll
    for (int i = 0; i < kChosen; ++i) {
      if (chosen_[i] != 0) offer(chosen_[i]);
    }
  }

  Scratch& scratch_;
  int64_t first_ = 0;  // of the part
  uint32_t key_[kKeys];
  unsigned long long chosen_[kChosen];
  uint32_t key_limit_ = 0;
  uint32_t rank_limit_ = 0;
  int kept_ = 0;  // candidates whose keys are not below the limit
  int round_ = 0;
};

}  // namespace cluster_attention::cuda
