#pragma once

// The best k keys of every row of a tile, gathered while the scores are in registers. A row has a
// list in shared memory: a score that is better than the row's threshold is appended; before the
// list can overflow, bisection finds a threshold that leaves about k of it. Which keys are left
// does not depend on the order in which they came: candidates are distinct (native/core/order.h),
// and the best k never fall below a threshold.

#include "cuda/attention_tile.cuh"
#include "native/core/order.h"

namespace cluster_attention::cuda {

constexpr int kSelectionSlack = 32;  // candidates that may stay beside the best k

template <typename Tile>
class TopKeys {
 public:
  /// Candidates of a row's list.
  CA_HOST_DEVICE static int64_t capacity(int64_t k) { return k + kSelectionSlack + Tile::kKeys; }
  CA_HOST_DEVICE static int64_t bytes(int64_t k, int warps) {
    return capacity(k) * Tile::Sizes::kWarpRows * warps * static_cast<int64_t>(sizeof(Candidate));
  }

  /// `lists` is the block's shared memory of bytes(k, warps).
  __device__ TopKeys(Candidate* lists, int k) : k_(k), capacity_(static_cast<int>(capacity(k))) {
    lists_ = lists + static_cast<int64_t>(warp_index()) * Tile::Sizes::kWarpRows * capacity_;
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        count_[m][half] = 0;
        threshold_[m][half] = 0;
      }
    }
  }

  /// A block of keys of one row tile; keys from `end_key` on do not take part.
  __device__ void add(int m, int64_t first_key, int64_t end_key,
                      const typename Tile::Scores& scores) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Candidate* list = list_of(m, half);
      int mine = 0;
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          mine += passes(m, half, first_key + Tile::key_of(n, i), end_key, scores[n][i]) ? 1 : 0;
        }
      }
      if (!any(mine > 0)) continue;
      int at = count_[m][half] + before_in_quad(mine);
#pragma unroll
      for (int n = 0; n < Tile::kScoreTiles; ++n) {
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          const int64_t key = first_key + Tile::key_of(n, i);
          if (!passes(m, half, key, end_key, scores[n][i])) continue;
          list[at++] = make_candidate(scores[n][i], static_cast<int32_t>(key));
        }
      }
      count_[m][half] += warp_sum(mine, 4);
      __syncwarp();
      if (any(count_[m][half] > capacity_ - Tile::kKeys)) {
        shrink(m, half, capacity_ - Tile::kKeys, k_ + kSelectionSlack);
      }
    }
  }

  /// Leaves at most k candidates of each row: the best ones, in no order.
  __device__ void finish() {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) shrink(m, half, k_, k_);
    }
  }
  /// Copies a row's k candidates, 0 where there are fewer; the four lanes of the row do it
  /// together.
  __device__ void write(int m, int half, Candidate* to) const {
    const Candidate* list = list_of(m, half);
    for (int i = lane_index() % 4; i < k_; i += 4) to[i] = i < count_[m][half] ? list[i] : 0;
  }

 private:
  __device__ Candidate* list_of(int m, int half) const {
    return lists_ + (m * kTileRows + half * 8 + lane_index() / 4) * capacity_;
  }
  __device__ bool passes(int m, int half, int64_t key, int64_t end_key, float score) const {
    return key < end_key && make_candidate(score, static_cast<int32_t>(key)) > threshold_[m][half];
  }
  /// Sum over the lanes of the quad before this one.
  __device__ static int before_in_quad(int value) {
    const int lane = lane_index() % 4;
    int sum = value;
    for (int distance = 1; distance < 4; distance *= 2) {
      const int before = shuffle_up(sum, distance);
      if (lane >= distance) sum += before;
    }
    return sum - value;
  }

  /// Cuts lists of more than `limit` candidates down to k .. most of the best; every quad its own
  /// row, all lanes of the warp together.
  __device__ void shrink(int m, int half, int limit, int most) {
    Candidate* list = list_of(m, half);
    const int count = count_[m][half];
    const int lane = lane_index() % 4;
    // More than k are above `low`, fewer than k above `high`.
    Candidate low = threshold_[m][half];
    Candidate high = ~Candidate{0};
    bool open = count > limit;
    int kept = count;
    while (any(open)) {
      const Candidate middle = low + (high - low) / 2;
      int above = 0;
      if (open) {
        for (int i = lane; i < count; i += 4) above += list[i] > middle ? 1 : 0;
      }
      above = warp_sum(above, 4);
      if (!open) continue;
      if (above >= k_) {
        low = middle;
        kept = above;
        open = kept > most;
      } else {
        high = middle;
      }
    }
    remove_below(list, count, low);
    threshold_[m][half] = low;
    count_[m][half] = kept;
  }

  /// Keeps the candidates above `low`, in place: four are read before any of them is written.
  __device__ void remove_below(Candidate* list, int count, Candidate low) const {
    const int lane = lane_index() % 4;
    const int longest = warp_max(count);
    int end = 0;
    for (int first = 0; first < longest; first += 4) {
      const Candidate candidate = first + lane < count ? list[first + lane] : 0;
      const int keep = candidate > low ? 1 : 0;
      const int at = end + before_in_quad(keep);
      __syncwarp();
      if (keep != 0) list[at] = candidate;
      end += warp_sum(keep, 4);
    }
    __syncwarp();
  }

  int k_;
  int capacity_;
  Candidate* lists_;
  int count_[Tile::kRowTiles][2];
  Candidate threshold_[Tile::kRowTiles][2];
};

}  // namespace cluster_attention::cuda
