#include "native/kernels/top_k.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "native/core/order.h"
#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Scores that are compared with the threshold at a time.
constexpr int64_t kBlock = 64;
/// Scores that make a task worth handing out.
constexpr int64_t kScoresPerTask = 1 << 15;

/// Room for the k best and those that come before the next pruning.
int64_t candidate_capacity(int64_t k, int64_t columns) {
  return std::min(2 * k + kBlock, std::max(columns, k + 1));
}

/// Gathers the k best of one row.
class RowSelector {
 public:
  RowSelector(Candidate* candidates, int64_t k, int64_t capacity)
      : candidates_(candidates), k_(k), capacity_(capacity) {}

  /// Offers `count` <= kBlock scores, the first of which has index `first`.
  void offer(const float* scores, int64_t count, int64_t first) {
    int32_t any_better = 0;
    for (int64_t i = 0; i < count; ++i) any_better |= !(scores[i] <= threshold_);
    if (any_better == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] <= threshold_) continue;
      candidates_[count_++] = make_candidate(scores[i], static_cast<int32_t>(first + i));
      if (count_ == capacity_) threshold_ = prune_candidates(candidates_, &count_, k_);
    }
  }

  /// The candidates left, best first; returns how many (at most k).
  int64_t finish() {
    if (count_ > k_) prune_candidates(candidates_, &count_, k_);
    std::sort(candidates_, candidates_ + count_, std::greater<Candidate>());
    return count_;
  }

 private:
  Candidate* candidates_;
  int64_t k_;
  int64_t capacity_;
  int32_t count_ = 0;
  /// What no longer can be among the best; NaN lets everything pass.
  float threshold_ = std::numeric_limits<float>::quiet_NaN();
};

}  // namespace

Status top_k(const TopKProblem& problem, Context& context) {
  const int64_t k = problem.k;
  if (k == 0) return Status::success();
  const int64_t capacity = candidate_capacity(k, problem.columns);
  const int64_t rows_per_task =
      std::max<int64_t>(1, kScoresPerTask / std::max<int64_t>(problem.columns, 1));
  const int64_t tasks = divide_up(problem.rows, rows_per_task);
  const int64_t workers = std::min<int64_t>(context.workers(), tasks);
  Candidate* candidates = context.workspace().allocate<Candidate>(checked_size(workers, capacity));
  if (candidates == nullptr) return Status::out_of_memory();

  const auto select_rows = [&](int64_t task, int worker) {
    bool finite = true;
    const int64_t begin = task * rows_per_task;
    for (int64_t row = begin; row < std::min(begin + rows_per_task, problem.rows); ++row) {
      const float* scores = problem.scores + row * problem.columns;
      const int64_t columns = real_length(problem.lengths, row, problem.columns);
      RowSelector selector(candidates + worker * capacity, k, capacity);
      for (int64_t first = 0; first < columns; first += kBlock) {
        const int64_t block = std::min(kBlock, columns - first);
        finite = all_finite(scores + first, block) && finite;  // a -Inf shows in no result
        selector.offer(scores + first, block, first);
      }
      const int64_t count = selector.finish();
      float* values = problem.values + row * k;
      int32_t* indices = problem.indices + row * k;
      for (int64_t t = 0; t < count; ++t) {
        indices[t] = candidate_index(candidates[worker * capacity + t]);
        values[t] = scores[indices[t]];
      }
      std::fill(values + count, values + k, -std::numeric_limits<float>::infinity());
      std::fill(indices + count, indices + k, -1);
    }
    if (!finite) context.mark_non_finite();
  };
  return context.parallel(tasks, select_rows,
                          3.0 * static_cast<double>(problem.rows * problem.columns));
}

}  // namespace cluster_attention::kernels
