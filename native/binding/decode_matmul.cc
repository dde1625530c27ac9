// Matrix products: §8 of the operations.

#include "native/binding/decode.h"

namespace cluster_attention {
namespace binding {

void decode(Request& request, MatmulProblem& problem) {
  problem.batch = request.size("batch");
  problem.rows = request.size("rows");
  problem.columns = request.size("columns", 1);
  problem.depth = request.size("depth", 1);
  problem.transpose_a = request.flag("transposeA");
  problem.transpose_b = request.flag("transposeB");
  problem.accumulate = request.flag("accumulate");
  request.array("a", problem.a, element_count(problem.batch, problem.rows, problem.depth));
  request.array("b", problem.b, element_count(problem.batch, problem.depth, problem.columns));
  request.array("output", problem.output,
                element_count(problem.batch, problem.rows, problem.columns));
}

}  // namespace binding
}  // namespace cluster_attention
