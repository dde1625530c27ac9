#include "native/reference/matmul.h"

#include "native/reference/matrix.h"

namespace cluster_attention::reference {

std::vector<double> matmul(const MatmulProblem& problem) {
  const int64_t rows = problem.rows;
  const int64_t columns = problem.columns;
  const int64_t depth = problem.depth;
  std::vector<double> output(problem.batch * rows * columns);
  for (int64_t entry = 0; entry < problem.batch; ++entry) {
    const float* a = problem.a + entry * rows * depth;
    const float* b = problem.b + entry * depth * columns;
    write_rows(multiply(problem.transpose_a ? transpose(read_dense(a, depth, rows))
                                            : read_dense(a, rows, depth),
                        problem.transpose_b ? transpose(read_dense(b, columns, depth))
                                            : read_dense(b, depth, columns)),
               entry, rows, output);
  }
  return output;
}

}  // namespace cluster_attention::reference
