#pragma once

// The best of a stream of candidates by one block.
//
// Candidates are distinct (native/core/order.h), so that what is chosen does not depend on the
// order in which threads come.

#include "cuda/block_sort.cuh"
#include "cuda/primitives/shared_memory.cuh"

namespace cluster_attention::cuda {

constexpr int kChoiceWarps = 4;
constexpr int kChoiceThreads = kChoiceWarps * kWarp;
constexpr int kOffers = 4 * kChoiceThreads;  // candidates that may come between calls of settle()
constexpr int kRankedAtOnce = 2 * kChoiceThreads;

/// Largest first; there is room for a power of two.
__device__ __noinline__ inline void sort_candidates(unsigned long long* list, int count) {
  const int64_t size = next_power_of_two(count);
  for (int64_t i = count + threadIdx.x; i < size; i += blockDim.x) list[i] = 0;
  __syncthreads();
  sort_descending(list, size);
}

/// How many of a list are better than list[i], for few of them: neighbouring lanes share the
/// comparisons. Gives place(i's candidate, i's place) once for each i; all threads of the block
/// call it.
template <typename Place>
__device__ inline void rank_candidates(const unsigned long long* list, int count, Place place) {
  const int shares = 2 * count <= static_cast<int>(blockDim.x) ? 2 : 1;
  const int own = static_cast<int>(threadIdx.x) / shares;
  const int share = static_cast<int>(threadIdx.x) % shares;
  const int step = static_cast<int>(blockDim.x) / shares;
#pragma unroll 1
  for (int first = 0; first < count; first += step) {
    // Warps past the end have nothing to do, lanes past it only to be there.
    if (first + (static_cast<int>(threadIdx.x) - lane_index()) / shares >= count) break;
    const int i = first + own;
    const unsigned long long mine = i < count ? list[i] : 0;
    int better = 0;
#pragma unroll 4
    for (int j = share; j < count; j += shares) better += list[j] > mine ? 1 : 0;
    if (shares == 2) better += shuffle_xor(better, 1);
    if (i < count && share == 0) place(mine, better);
  }
}

/// The best k of a stream of candidates, in shared memory.
class BestCandidates {
 public:
  using Entry = unsigned long long;

  struct Layout {
    int64_t list;    // capacity(k)
    int64_t ranked;  // kRankedAtOnce
    int64_t count;
  };
  /// A power of two, for k + kOffers; without a loop, as every block works it out.
  CA_HOST_DEVICE static int64_t capacity(int64_t k) {
    uint32_t last = static_cast<uint32_t>(k) + kOffers - 1;
    last |= last >> 1;
    last |= last >> 2;
    last |= last >> 4;
    last |= last >> 8;
    last |= last >> 16;
    return int64_t{last} + 1;
  }
  CA_HOST_DEVICE static Layout add_to(SharedLayout& parts, int64_t k) {
    const int64_t list = parts.add<Entry>(capacity(k));
    const int64_t ranked = parts.add<Entry>(kRankedAtOnce);
    const int64_t count = parts.add<int32_t>(1);
    return {list, ranked, count};
  }

  __device__ BestCandidates(const Layout& layout, int k)
      : list_(dynamic_shared<Entry>(layout.list)),
        ranked_(dynamic_shared<Entry>(layout.ranked)),
        count_(dynamic_shared<int32_t>(layout.count)),
        best_(list_),
        k_(k) {}

  /// Every thread of the block; a barrier must follow.
  __device__ void clear() {
    if (threadIdx.x == 0) *count_ = 0;
    threshold_ = 0;
  }

  /// All lanes of a warp together; a lane without a candidate says so by 0.
  __device__ void offer(Entry candidate) {
    const bool passes = candidate > threshold_;
    const unsigned lanes = ballot(passes);
    if (lanes == 0) return;
    int32_t begin = 0;
    if (lane_index() == 0) begin = atomicAdd(count_, __popc(lanes));
    begin = shuffle(begin, 0);
    if (passes) list_[begin + __popc(lanes & ((1u << lane_index()) - 1u))] = candidate;
  }

  /// After offers by every thread: makes room for kOffers more, or, when these were the `last`
  /// ones, puts the best k in order in best(), for all threads of the block. How many there are.
  __device__ int settle(bool last) {
    __syncthreads();
    int count = *count_;
    if (last || count + kOffers > static_cast<int>(capacity(k_))) {
      sort(count);
      count = count < k_ ? count : k_;
      if (last) return count;
      keep(count);
    }
    __syncthreads();
    return count;
  }
  /// After the last call of settle().
  __device__ const Entry* best() const { return best_; }
  /// Room for capacity(k) candidates between clear() and the first offer.
  __device__ Entry* room() const { return list_; }

 private:
  __device__ void sort(int count) {
    if (count > kRankedAtOnce) {
      sort_candidates(list_, count);
      best_ = list_;
      return;
    }
    rank_candidates(list_, count, [&](Entry mine, int place) { ranked_[place] = mine; });
    best_ = ranked_;
    __syncthreads();
  }

  /// The first `count` are the candidates so far, where they are: so many are never ranked.
  __device__ void keep(int count) {
    static_assert(kOffers >= kRankedAtOnce, "a full list has been sorted in its place");
    threshold_ = count < k_ ? 0 : best_[k_ - 1];
    if (threadIdx.x == 0) *count_ = count;
  }

  Entry* list_;
  Entry* ranked_;
  int32_t* count_;
  const Entry* best_;
  int k_;
  Entry threshold_ = 0;
};

}  // namespace cluster_attention::cuda
