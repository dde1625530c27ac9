#pragma once

// A top-k problem from a case of the table.

#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// Rows are the queries of a case, columns its keys.
struct TopKFixture {
  Arrays arrays;
  TopKProblem problem;
  float* scores;

  TopKFixture(const Case& which, Fill fill, bool ragged = false) {
    problem.rows = which.batch * which.heads * which.query_length;
    problem.columns = which.key_length;
    problem.k = which.clamped_top_k();
    scores = arrays.floats(problem.rows * problem.columns, 1, fill);
    if (ragged) {
      const std::vector<int32_t> lengths =
          random_indices(problem.rows, 0, static_cast<int32_t>(problem.columns) + 1, 2);
      for (int64_t row = 0; row < problem.rows; ++row) {
        for (int64_t s = lengths[row]; s < problem.columns; ++s) {
          scores[row * problem.columns + s] = std::numeric_limits<float>::quiet_NaN();
        }
      }
      problem.lengths = arrays.optional(lengths);
    }
    problem.scores = scores;
    problem.values = arrays.output<float>(problem.rows * problem.k);
    problem.indices = arrays.output<int32_t>(problem.rows * problem.k);
  }
};

}  // namespace cluster_attention::test
