#include "native/kernels/top_k.h"

#include <algorithm>
#include <limits>

#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/kernels/shortlist.h"

namespace cluster_attention::kernels {

namespace {

/// Scores that make a task worth handing out.
constexpr int64_t kScoresPerTask = 1 << 15;

}  // namespace

Status top_k(const TopKProblem& problem, Context& context) {
  const int64_t k = problem.k;
  if (k == 0) return Status::success();
  const int64_t capacity = Shortlist::capacity(k, problem.columns);
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
      Shortlist best(candidates + worker * capacity, k, capacity);
      for (int64_t first = 0; first < columns; first += Shortlist::kBlock) {
        const int64_t block = std::min(Shortlist::kBlock, columns - first);
        finite = all_finite(scores + first, block) && finite;  // a -Inf shows in no result
        best.offer(scores + first, block, first);
      }
      const int64_t count = sort_best(best.begin(), best.count(), k);
      float* values = problem.values + row * k;
      int32_t* indices = problem.indices + row * k;
      for (int64_t t = 0; t < count; ++t) {
        indices[t] = candidate_index(best.begin()[t]);
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
