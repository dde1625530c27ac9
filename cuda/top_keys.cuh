#pragma once

// T_j, the best k keys of a cluster by q̄_j·k, by one block. clustered_pass.cuh left the largest
// score of every group of neighbouring keys. A key that is among the best k lies in one of the k
// groups with the largest ones (of equal ones the groups of lower indices): those are chosen first,
// and the scores of their keys computed again, with the same operands in the same order, hence the
// same bits. Of them only those not below the last of the chosen groups can count.
//
// Candidates are distinct (native/core/order.h), so that what is chosen does not depend on the
// order in which threads come.

#include "cuda/block_sort.cuh"
#include "cuda/clustered_pass.cuh"

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

/// The same for a few: each one's place by counting those before it. One copy of the code for both
/// calls: blocks run it once each, and fetching instructions takes longer than they do.
__device__ __noinline__ inline void rank_candidates(unsigned long long* list,
                                                    unsigned long long* ranked, int count) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const unsigned long long mine = list[i];
    int place = 0;
#pragma unroll 4
    for (int j = 0; j < count; ++j) place += list[j] > mine ? 1 : 0;
    ranked[place] = mine;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    list[i] = ranked[i];
  }
  __syncthreads();
}

/// The best k of a stream of candidates, in shared memory.
class BestCandidates {
 public:
  using Entry = unsigned long long;

  struct Layout {
    int64_t list;    // next_power_of_two(k + kOffers)
    int64_t ranked;  // kRankedAtOnce
    int64_t count;
  };
  CA_HOST_DEVICE static int64_t capacity(int64_t k) { return next_power_of_two(k + kOffers); }
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
  /// ones, puts the best k in order for all threads of the block. How many there are.
  __device__ int settle(bool last) {
    __syncthreads();
    int count = *count_;
    if (last || count + kOffers > static_cast<int>(capacity(k_))) {
      if (count <= kRankedAtOnce) {
        rank_candidates(list_, ranked_, count);
      } else {
        sort_candidates(list_, count);
      }
      count = count < k_ ? count : k_;
      threshold_ = count < k_ ? 0 : list_[k_ - 1];
      if (threadIdx.x == 0) *count_ = count;
    }
    __syncthreads();
    return count;
  }
  __device__ const Entry* list() const { return list_; }

 private:
  Entry* list_;
  Entry* ranked_;
  int32_t* count_;
  int k_;
  Entry threshold_ = 0;
};

/// Where the keys of one cluster are.
struct ChoiceTask {
  int64_t batch;
  int64_t head;
  int64_t keys;         // real ones
  int group_shift;      // log2 of the keys in a group
  const float* maxima;  // of the groups
  const float* mean;    // (D)
  int32_t head_dim;
  int32_t top_k;
};

template <int kWidth, bool kSplit>
class KeyChoice {
 public:
  using Sizes = typename PassTile<kWidth, kSplit>::Sizes;
  using Entry = BestCandidates::Entry;
  static constexpr int kParts = Sizes::kParts;
  static constexpr int kStride = Sizes::kStride;
  static constexpr int kScratch = kChoiceThreads + 4;  // words of floor_of_groups()
  /// Keys that a warp computes again at once, in tiles of 8.
  static constexpr int kKeys = kWidth * kParts <= 64 ? 32 : kWidth * kParts <= 128 ? 16 : 8;

  struct Layout {
    BestCandidates::Layout best;
    int64_t chosen;  // (k): groups
    int64_t keys;    // (kChoiceWarps, kParts, kKeys, kStride), and scratch before that
    int64_t bytes;
  };
  CA_HOST_DEVICE static Layout layout(int64_t k) {
    SharedLayout parts;
    const BestCandidates::Layout best = BestCandidates::add_to(parts, k);
    const int64_t chosen = parts.add<int32_t>(k);
    const int64_t keys = parts.add<bfloat16>(int64_t{kChoiceWarps} * kParts * kKeys * kStride);
    return {best, chosen, keys, parts.bytes()};
  }

  __device__ KeyChoice(const ChoiceTask& task, const Operand& key)
      : task_(task),
        key_(key),
        best_(layout(task.top_k).best, task.top_k),
        chosen_(dynamic_shared<int32_t>(layout(task.top_k).chosen)),
        keys_(dynamic_shared<bfloat16>(layout(task.top_k).keys)) {}

  /// Asks for the groups' scores, where there is room for them; run() or leave() waits.
  __device__ void start() {
    if (!copied()) return;
    for (int first = 4 * static_cast<int>(threadIdx.x); first < groups(); first += kOffers) {
      copy_async_16(scores() + first, task_.maxima + first, true);
    }
    commit_copies();
  }
  __device__ void leave() { wait_copies<0>(); }

  /// The best keys in list(), in order, for all threads of the block; their number.
  __device__ int run() {
    const int chosen = groups() < task_.top_k ? groups() : task_.top_k;
    uint32_t least = 0;
    wait_copies<0>();
    best_.clear();
    __syncthreads();
    if (groups() > task_.top_k) {
      choose_groups(groups(), copied() ? scores() : task_.maxima);
      least = static_cast<uint32_t>(best_.list()[chosen - 1] >> 32);
      for (int i = static_cast<int>(threadIdx.x); i < chosen; i += kChoiceThreads) {
        chosen_[i] = candidate_index(best_.list()[i]);
      }
      __syncthreads();  // the list is read
      best_.clear();
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < chosen; i += kChoiceThreads) chosen_[i] = i;
    }
    __syncthreads();
    return offer_keys(static_cast<int64_t>(chosen) << task_.group_shift, least);
  }
  __device__ const Entry* list() const { return best_.list(); }

 private:
  __device__ int groups() const {
    const int64_t last = (int64_t{1} << task_.group_shift) - 1;
    return static_cast<int>((task_.keys + last) >> task_.group_shift);
  }
  /// Shared memory for the groups' scores, behind scratch, until keys come there.
  __device__ float* scores() const { return reinterpret_cast<float*>(keys_) + kScratch; }
  __device__ bool copied() const {
    return groups() <= kChoiceWarps * kParts * kKeys * kStride / 2 - kScratch;
  }

  __device__ void choose_groups(int groups, const float* scores) {
    const float floor = value_of_key(floor_of_groups(groups, scores));
    const int thread = static_cast<int>(threadIdx.x);
    int round = 0;
#pragma unroll 1
    for (int first = 0; first < groups; first += kChoiceThreads) {
      const int mine = first + thread;
      const float score = mine < groups ? scores[mine] : 0.0f;
      // A floor that is a NaN holds nothing back, nor is a NaN below any floor.
      const bool passes = mine < groups && !(score < floor);
      if (any(passes)) best_.offer(passes ? make_candidate(score, mine) : 0);
      const bool last = first + kChoiceThreads >= groups;
      if (++round % (kOffers / kChoiceThreads) == 0 || last) best_.settle(last);
    }
  }

  /// The ordered key of a score that at least k groups reach, and few more: about the k-th of the
  /// largest ones that each thread saw.
  __device__ uint32_t floor_of_groups(int groups, const float* scores) const {
    float largest = -HUGE_VALF;
#pragma unroll 4
    for (int first = 4 * static_cast<int>(threadIdx.x); first < groups; first += kOffers) {
      float4 four = *reinterpret_cast<const float4*>(scores + first);
      if (first + 1 >= groups) four.y = -HUGE_VALF;
      if (first + 2 >= groups) four.z = -HUGE_VALF;
      if (first + 3 >= groups) four.w = -HUGE_VALF;
      largest = larger_or_nan(
          largest, larger_or_nan(larger_or_nan(four.x, four.y), larger_or_nan(four.z, four.w)));
    }
    uint32_t* all = reinterpret_cast<uint32_t*>(keys_);
    all[threadIdx.x] = ordered_key(largest);
    __syncthreads();
    if (warp_index() == 0) {
      const uint32_t floor = floor_of_threads(all);
      if (lane_index() == 0) all[kChoiceThreads] = floor;
    }
    __syncthreads();
    return all[kChoiceThreads];
  }

  /// By one warp: bisection, until k to k + kSlack of the threads' keys are left.
  __device__ uint32_t floor_of_threads(const uint32_t* all) const {
    constexpr int kSlack = 8;
    const uint4 mine = reinterpret_cast<const uint4*>(all)[lane_index()];
    const int k = task_.top_k;
    uint32_t low = ordered_key(-HUGE_VALF);  // all keys reach it
    if (k > kChoiceThreads) return low;
    uint32_t high = ~uint32_t{0};  // at most that many keys lie above
#pragma unroll 1
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2 + 1;
      const int count = __popc(ballot(mine.x >= middle)) + __popc(ballot(mine.y >= middle)) +
                        __popc(ballot(mine.z >= middle)) + __popc(ballot(mine.w >= middle));
      if (count >= k) {
        low = middle;
        if (count <= k + kSlack) break;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  /// The keys of the chosen groups whose scores are not below `least`; how many are the best.
  __device__ int offer_keys(int64_t count, uint32_t least) {
    FragmentA mean[2][kWidth / 16];
    load_mean(mean);
    constexpr int64_t kAtOnce = kChoiceWarps * kKeys;
    constexpr int kRounds = kOffers / kAtOnce;  // between calls of settle()
    const int place = place_of(lane_index());
    int round = 0;
    int best = 0;
#pragma unroll 1
    for (int64_t first = 0; first < count || first == 0; first += kAtOnce) {
      const int32_t key = key_at(first + warp_index() * kKeys + lane_index(), count);
      copy_keys(key);
      const float score = multiply_keys(mean);
      // The lane has the score of key `place` of the warp's.
      const int32_t mine = shuffle(key, place % kWarp);
      const bool real = place < kKeys && mine >= 0 && ordered_key(score) >= least;
      best_.offer(real ? make_candidate(score, mine) : 0);
      const bool last = first + kAtOnce >= count;
      if (++round % kRounds == 0 || last) best = best_.settle(last);
    }
    return best;
  }

  /// Of the chosen groups' keys, -1 past the last one.
  __device__ int32_t key_at(int64_t place, int64_t count) const {
    if (lane_index() >= kKeys || place >= count) return -1;
    const int64_t group = chosen_[place >> task_.group_shift];
    const int64_t within = place & ((int64_t{1} << task_.group_shift) - 1);
    const int64_t key = (group << task_.group_shift) + within;
    return key < task_.keys ? static_cast<int32_t>(key) : -1;
  }

  /// The mean query in every row of A.
  __device__ void load_mean(FragmentA (&mean)[2][kWidth / 16]) const {
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = k * 16 + side * 8 + lane_index() % 4 * 2;
        const float first = column < task_.head_dim ? task_.mean[column] : 0.0f;
        const float second = column + 1 < task_.head_dim ? task_.mean[column + 1] : 0.0f;
        uint32_t high;
        uint32_t low;
        split_pair(first, second, high, low);
        mean[0][k][2 * side] = mean[0][k][2 * side + 1] = high;
        mean[1][k][2 * side] = mean[1][k][2 * side + 1] = low;
      }
    }
  }

  __device__ bfloat16* warp_keys() const { return keys_ + warp_index() * kParts * kKeys * kStride; }

  /// The rows of the lanes' keys; zeros for -1. A lane copies the same columns of every few rows.
  __device__ void copy_keys(int32_t key) {
    constexpr int kChunks = kWidth / 8;
    constexpr int kRows = kWarp / kChunks;  // at once
    const int column = lane_index() % kChunks * 8;
    const int64_t begin = task_.batch * key_.batch_stride + task_.head * key_.head_stride + column;
    const bool two = kSplit && key_.low != nullptr;
    bfloat16* to = warp_keys() + lane_index() / kChunks * kStride + column;
    __syncwarp();  // the keys before are read
#pragma unroll
    for (int row = 0; row < kKeys; row += kRows, to += kRows * kStride) {
      const int32_t from = shuffle(key, row + lane_index() / kChunks);
      const bool valid = from >= 0 && column < key_.columns;
      const int64_t at = valid ? begin + from * key_.row_stride : 0;
      copy_async_16(to, key_.high + at, valid);
      if constexpr (kSplit) {
        copy_async_16(to + kKeys * kStride, two ? key_.low + at : key_.high, valid && two);
      }
    }
    commit_copies();
    wait_copies<0>();
    __syncwarp();
  }

  /// Of the warp's keys, the one whose score a lane gets; kKeys and more: none.
  __device__ static int place_of(int lane) {
    constexpr int kTiles = kKeys / 8;
    const int tile = lane / 4 % kTiles;
    const int element = lane / 4 / kTiles;
    return element < 2 ? tile * 8 + lane % 4 * 2 + element : kKeys;
  }

  /// In the order of AttentionTile::multiply_keys(), hence with the same bits.
  __device__ float multiply_keys(const FragmentA (&mean)[2][kWidth / 16]) const {
    constexpr int kTiles = kKeys / 8;
    const int lane = lane_index();
    const bfloat16* keys = warp_keys() + lane % 8 * kStride + lane / 8 * 8;
    float mine = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      FragmentD score = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int k = 0; k < kWidth / 32; ++k) {
        uint32_t key[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          load_tiles(key[part], keys + (part * kKeys + n * 8) * kStride + k * 32);
        }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const int first = step * 2;
          const FragmentB high = {key[0][first], key[0][first + 1]};
          const FragmentB low = {key[kParts - 1][first], key[kParts - 1][first + 1]};
          multiply_parts<2, kParts>(score, mean[0][2 * k + step], mean[1][2 * k + step], high, low);
        }
      }
      if (lane / 4 % kTiles == n) mine = lane / 4 / kTiles == 0 ? score[0] : score[1];
    }
    return mine;
  }

  const ChoiceTask& task_;
  const Operand& key_;
  BestCandidates best_;
  int32_t* chosen_;
  bfloat16* keys_;
};

}  // namespace cluster_attention::cuda
