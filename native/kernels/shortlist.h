#pragma once

// The k best of scores that come in blocks, in the common order (core/order.h).

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>

#include "native/core/order.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// Of `count` candidates the k best, in front of the others and best first; returns how many.
inline int64_t sort_best(Candidate* candidates, int32_t count, int64_t k) {
  if (k == 0) return 0;
  if (count > k) prune_candidates(candidates, &count, k);
  std::sort(candidates, candidates + count, std::greater<Candidate>());
  return count;
}

/// Gathers the k best of one row, k > 0.
class Shortlist {
 public:
  /// Scores that are compared with the threshold at a time.
  static constexpr int64_t kBlock = 64;

  /// Room for the k best of `scores` and those that come before the next pruning.
  static int64_t capacity(int64_t k, int64_t scores) { return std::min(2 * k + kBlock, scores); }

  /// `capacity` as above, or more.
  Shortlist(Candidate* candidates, int64_t k, int64_t capacity)
      : candidates_(candidates), k_(k), capacity_(capacity) {}

  /// Offers `count` <= kBlock scores, the first of which has index `first`, in ascending order.
  void offer(const float* scores, int64_t count, int64_t first) {
    int32_t any_better = 0;
    for (int64_t i = 0; i < count; ++i) any_better |= !(scores[i] <= threshold_);
    if (any_better == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] <= threshold_) continue;
      candidates_[count_++] = make_candidate(scores[i], static_cast<int32_t>(first + i));
      if (count_ == capacity_ && count_ > k_) {
        threshold_ = prune_candidates(candidates_, &count_, k_);
      }
    }
  }

  /// Forgets all that was offered.
  void clear() {
    count_ = 0;
    threshold_ = kNone;
  }

  /// What may be among the k best, in no order: at most `capacity`.
  Candidate* begin() const { return candidates_; }
  int32_t count() const { return count_; }

 private:
  static constexpr float kNone = std::numeric_limits<float>::quiet_NaN();  // lets everything pass

  Candidate* candidates_;
  int64_t k_;
  int64_t capacity_;
  int32_t count_ = 0;
  float threshold_ = kNone;  // what no longer can be among the best
};

}  // namespace cluster_attention::kernels
