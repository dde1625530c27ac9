#include "native/reference/broadcast.h"

namespace cluster_attention::reference {

std::vector<double> broadcast(const BroadcastProblem& problem) {
  std::vector<double> output(problem.batch * problem.length * problem.dim, 0.0);
  for (int64_t row = 0; row < problem.batch * problem.length; ++row) {
    const int32_t label = problem.labels[row];
    if (label < 0) continue;
    const int64_t source = row / problem.length * problem.clusters + label;
    for (int64_t d = 0; d < problem.dim; ++d) {
      output[row * problem.dim + d] = problem.inputs[source * problem.dim + d];
    }
  }
  return output;
}

std::vector<double> broadcast_gradient(const BroadcastGradientProblem& problem) {
  const BroadcastProblem& forward = problem.forward;
  std::vector<double> gradient(forward.batch * forward.clusters * forward.dim, 0.0);
  for (int64_t row = 0; row < forward.batch * forward.length; ++row) {
    const int32_t label = forward.labels[row];
    if (label < 0) continue;
    const int64_t target = row / forward.length * forward.clusters + label;
    for (int64_t d = 0; d < forward.dim; ++d) {
      gradient[target * forward.dim + d] += problem.output_gradient[row * forward.dim + d];
    }
  }
  return gradient;
}

}  // namespace cluster_attention::reference
