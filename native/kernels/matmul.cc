#include "native/kernels/matmul.h"

#include "native/kernels/project_rows.h"

namespace cluster_attention::kernels {

Status matmul(const MatmulProblem& problem, Context& context) {
  const int64_t rows = problem.rows;
  const int64_t columns = problem.columns;
  const int64_t depth = problem.depth;
  PackedWeight panels;
  CA_RETURN_IF_ERROR(
      problem.transpose_b
          ? pack_weight(problem.b, problem.batch, columns, depth, context, panels)
          : pack_transposed_weight(problem.b, problem.batch, depth, columns, context, panels));
  GroupedRows<const float> a{problem.a, depth, rows * depth, 1};
  if (problem.transpose_a) a = {problem.a, 1, rows * depth, rows};
  const GroupedRows<float> output{problem.output, columns, rows * columns, 1};
  return project_rows(a, rows, panels, output, context, {problem.accumulate, true});
}

}  // namespace cluster_attention::kernels
