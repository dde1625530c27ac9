#pragma once

// A matrix product of given sizes.

#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

struct MatmulSizes {
  int64_t batch;
  int64_t rows;
  int64_t columns;
  int64_t depth;
};

struct MatmulFixture {
  Arrays arrays;
  MatmulProblem problem;
  float* a;
  float* b;

  explicit MatmulFixture(const MatmulSizes& sizes, bool transpose_a = false,
                         bool transpose_b = false) {
    problem.batch = sizes.batch;
    problem.rows = sizes.rows;
    problem.columns = sizes.columns;
    problem.depth = sizes.depth;
    problem.transpose_a = transpose_a;
    problem.transpose_b = transpose_b;
    a = arrays.floats(sizes.batch * sizes.rows * sizes.depth, 1);
    b = arrays.floats(sizes.batch * sizes.depth * sizes.columns, 2);
    problem.a = a;
    problem.b = b;
    problem.output = arrays.output<float>(output_size());
  }

  int64_t output_size() const { return problem.batch * problem.rows * problem.columns; }
};

}  // namespace cluster_attention::test
