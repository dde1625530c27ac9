#pragma once

// T_j, the best k keys of a cluster by q̄_j·k, by one block. clustered_pass.cuh left the largest
// score of every group of neighbouring keys. A key that is among the best k lies in one of the k
// groups with the largest ones (of equal ones the groups of lower indices): those are chosen first,
// and the scores of their keys computed again, with the same operands in the same order, hence the
// same bits. Of them only those not below the last of the chosen groups can count.

#include "cuda/best_candidates.cuh"
#include "cuda/clustered_pass.cuh"

namespace cluster_attention::cuda {

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
  static constexpr int kScratch = kChoiceThreads;  // words, of floor_of_groups()
  /// Keys that a warp computes again at once, in tiles of 8.
  static constexpr int kKeys = kWidth * kParts <= 64 ? 32 : kWidth * kParts <= 128 ? 16 : 8;

  /// What the threads tell each other of the groups.
  struct Shared {
    uint32_t floor;
    int32_t reached;  // groups not below it
    uint32_t least;   // ordered key of the last one chosen
  };
  struct Layout {
    BestCandidates::Layout best;
    int64_t shared;
    int64_t mean;    // (kWidth): zeros past head_dim
    int64_t chosen;  // (k): groups
    int64_t keys;    // (kChoiceWarps, kParts, kKeys, kStride), and scratch before that
    int64_t bytes;
  };
  CA_HOST_DEVICE static Layout layout(int64_t k) {
    SharedLayout parts;
    const BestCandidates::Layout best = BestCandidates::add_to(parts, k);
    const int64_t shared = parts.add<Shared>(1);
    const int64_t mean = parts.add<float>(kWidth);
    const int64_t chosen = parts.add<int32_t>(k);
    const int64_t keys = parts.add<bfloat16>(int64_t{kChoiceWarps} * kParts * kKeys * kStride);
    return {best, shared, mean, chosen, keys, parts.bytes()};
  }

  __device__ KeyChoice(const ChoiceTask& task, const Operand& key)
      : task_(task),
        key_(key),
        best_(layout(task.top_k).best, task.top_k),
        shared_(*dynamic_shared<Shared>(layout(task.top_k).shared)),
        mean_(dynamic_shared<float>(layout(task.top_k).mean)),
        chosen_(dynamic_shared<int32_t>(layout(task.top_k).chosen)),
        keys_(dynamic_shared<bfloat16>(layout(task.top_k).keys)) {}

  /// Asks for the mean and, where there is room for them, the groups' scores; wait_copies() and a
  /// barrier must follow.
  __device__ void start() {
    const int thread = static_cast<int>(threadIdx.x);
    best_.clear();
    if (thread == 0) shared_.reached = 0;
    start_mean(thread);
    if (copied()) {
      for (int first = 4 * thread; first < groups(); first += kOffers) {
        copy_async_16(scores() + first, task_.maxima + first, true);
      }
    }
    commit_copies();
  }

  /// The best keys in list(), in order, for all threads of the block; their number.
  __device__ int run() {
    const int chosen = groups() < task_.top_k ? groups() : task_.top_k;
    uint32_t least = 0;
    if (groups() > task_.top_k) {
      choose_groups(groups(), copied() ? scores() : task_.maxima);
      least = shared_.least;
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < chosen; i += kChoiceThreads) chosen_[i] = i;
      __syncthreads();
    }
    return offer_keys(static_cast<int64_t>(chosen) << task_.group_shift, least);
  }
  __device__ const Entry* list() const { return best_.best(); }

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

  __device__ void start_mean(int thread) {
    if (task_.head_dim % 4 == 0) {
      const int column = 4 * thread;
      const bool real = column < task_.head_dim;
      if (column < kWidth) {
        copy_async_16(mean_ + column, real ? task_.mean + column : task_.mean, real);
      }
      return;
    }
    for (int column = thread; column < kWidth; column += kChoiceThreads) {
      mean_[column] = column < task_.head_dim ? task_.mean[column] : 0.0f;
    }
  }

  /// The best k groups in chosen_, in order, and `least`, for all threads.
  __device__ void choose_groups(int groups, const float* scores) {
    const float floor = value_of_key(floor_of_groups(groups, scores));
    const int room = static_cast<int>(BestCandidates::capacity(task_.top_k));
    const int k = task_.top_k;
    collect_groups(groups, scores, floor, room);
    __syncthreads();
    const int reached = shared_.reached;
    const auto choose = [&](Entry group, int place) {
      if (place < k) chosen_[place] = candidate_index(group);
      if (place == k - 1) shared_.least = static_cast<uint32_t>(group >> 32);
    };
    if (reached <= kRankedAtOnce) {
      rank_candidates(best_.room(), reached, choose);
    } else {
      if (reached <= room) {
        sort_candidates(best_.room(), reached);
      } else {
        offer_groups(groups, scores, floor);
      }
      const Entry* best = reached <= room ? best_.room() : best_.best();
      for (int i = static_cast<int>(threadIdx.x); i < k; i += kChoiceThreads) choose(best[i], i);
      __syncthreads();
      best_.clear();
    }
    __syncthreads();
  }

  /// Groups not below the floor, in any order, as far as there is room; counts all of them. A floor
  /// that is a NaN holds nothing back, nor is a NaN below any floor.
  __device__ void collect_groups(int groups, const float* scores, float floor, int room) {
    constexpr int kStep = 2 * kChoiceThreads;
    constexpr int kAtOnce = 16;  // pairs
#pragma unroll 1
    for (int begin = 2 * static_cast<int>(threadIdx.x); begin < groups; begin += kAtOnce * kStep) {
      uint32_t passing = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int first = begin + i * kStep;
        if (first >= groups) break;
        const float2 two = *reinterpret_cast<const float2*>(scores + first);
        if (!(two.x < floor)) passing |= 1u << (2 * i);
        if (!(two.y < floor) && first + 1 < groups) passing |= 2u << (2 * i);
      }
      if (passing == 0) continue;
      int place = atomicAdd(&shared_.reached, __popc(passing));
#pragma unroll 1
      for (; passing != 0 && place < room; passing &= passing - 1, ++place) {
        const int bit = __ffs(static_cast<int>(passing)) - 1;
        const int group = begin + bit / 2 * kStep + bit % 2;
        best_.room()[place] = make_candidate(scores[group], group);
      }
    }
  }

  /// The same where there is no room for them all, some at a time.
  __device__ void offer_groups(int groups, const float* scores, float floor) {
    int round = 0;
#pragma unroll 1
    for (int first = 0; first < groups; first += kChoiceThreads) {
      const int mine = first + static_cast<int>(threadIdx.x);
      const float score = mine < groups ? scores[mine] : 0.0f;
      const bool passes = mine < groups && !(score < floor);
      if (any(passes)) best_.offer(passes ? make_candidate(score, mine) : 0);
      const bool last = first + kChoiceThreads >= groups;
      if (++round % (kOffers / kChoiceThreads) == 0 || last) best_.settle(last);
    }
  }

  /// The ordered key of a score that at least k groups reach, and few more: about the k-th of the
  /// largest ones that each thread saw.
  __device__ uint32_t floor_of_groups(int groups, const float* scores) {
    float largest = -HUGE_VALF;
#pragma unroll 8
    for (int first = 2 * static_cast<int>(threadIdx.x); first < groups;
         first += 2 * kChoiceThreads) {
      float2 two = *reinterpret_cast<const float2*>(scores + first);
      if (first + 1 >= groups) two.y = -HUGE_VALF;
      largest = larger_or_nan(largest, larger_or_nan(two.x, two.y));
    }
    uint32_t* all = reinterpret_cast<uint32_t*>(keys_);
    all[threadIdx.x] = ordered_key(largest);
    __syncthreads();
    if (warp_index() == 0) {
      const uint32_t floor = floor_of_threads(all);
      if (lane_index() == 0) shared_.floor = floor;
    }
    __syncthreads();
    return shared_.floor;
  }

  /// By one warp: bisection, until k to k + kSlack of the threads' keys are left.
  __device__ uint32_t floor_of_threads(const uint32_t* all) const {
    constexpr int kSlack = 8;
    const uint4 mine = reinterpret_cast<const uint4*>(all)[lane_index()];
    const int k = task_.top_k;
    if (k > kChoiceThreads) return ordered_key(-HUGE_VALF);  // all keys reach it
    const auto larger = [](uint32_t a, uint32_t b) { return a > b ? a : b; };
    const auto smaller = [](uint32_t a, uint32_t b) { return a < b ? a : b; };
    uint32_t high = larger(larger(mine.x, mine.y), larger(mine.z, mine.w));
    uint32_t low = smaller(smaller(mine.x, mine.y), smaller(mine.z, mine.w));
    high = warp_reduce(high, larger);  // at most that many keys lie above
    low = warp_reduce(low, smaller);   // all reach it
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
#pragma unroll 1
    for (int64_t first = 0;; first += kAtOnce) {
      const int32_t key = key_at(first + warp_index() * kKeys + lane_index(), count);
      copy_keys(key);
      const float score = multiply_keys(mean);
      // The lane has the score of key `place` of the warp's.
      const int32_t mine = shuffle(key, place % kWarp);
      const bool real = place < kKeys && mine >= 0 && ordered_key(score) >= least;
      best_.offer(real ? make_candidate(score, mine) : 0);
      const bool last = first + kAtOnce >= count;
      if (++round % kRounds != 0 && !last) continue;
      const int best = best_.settle(last);
      if (last) return best;
    }
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
        const float2 two =
            *reinterpret_cast<const float2*>(mean_ + k * 16 + side * 8 + lane_index() % 4 * 2);
        uint32_t high;
        uint32_t low;
        split_pair(two.x, two.y, high, low);
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
    FragmentD scores[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
    }
    // The sum of a tile has to wait for itself, but not for the others.
#pragma unroll
    for (int k = 0; k < kWidth / 32; ++k) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
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
          multiply_parts<2, kParts>(scores[n], mean[0][2 * k + step], mean[1][2 * k + step], high,
                                    low);
        }
      }
    }
    float mine = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (lane / 4 % kTiles == n) mine = lane / 4 / kTiles == 0 ? scores[n][0] : scores[n][1];
    }
    return mine;
  }

  const ChoiceTask& task_;
  const Operand& key_;
  BestCandidates best_;
  Shared& shared_;
  float* mean_;
  int32_t* chosen_;
  bfloat16* keys_;
};

}  // namespace cluster_attention::cuda
