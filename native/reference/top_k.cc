#include "native/reference/top_k.h"

#include <algorithm>

#include "native/reference/matrix.h"

namespace cluster_attention::reference {

TopKResult top_k(const TopKProblem& problem) {
  TopKResult result{std::vector<double>(problem.rows * problem.k, -kInfinity),
                    std::vector<int32_t>(problem.rows * problem.k, -1)};
  for (int64_t row = 0; row < problem.rows; ++row) {
    const float* scores = problem.scores + row * problem.columns;
    const int64_t valid = real_length(problem.lengths, row, problem.columns);
    const std::vector<int32_t> order = sorted_indices({scores, scores + valid});
    for (int64_t t = 0; t < std::min(problem.k, valid); ++t) {
      result.values[row * problem.k + t] = scores[order[t]];
      result.indices[row * problem.k + t] = order[t];
    }
  }
  return result;
}

}  // namespace cluster_attention::reference
