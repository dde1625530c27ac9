#include "native/kernels/centroid_encode.h"

#include "native/kernels/centroid_encoding.h"
#include "native/kernels/finite.h"

namespace cluster_attention::kernels {

Status centroid_encode(const CentroidEncodeProblem& problem, Context& context) {
  CentroidEncoding encoding(problem, absorbing_is_cheaper(problem), context);
  CA_RETURN_IF_ERROR(encoding.find_active());
  CA_RETURN_IF_ERROR(encoding.prepare(false));  // checks the neighbors: before anything is written
  CA_RETURN_IF_ERROR(encoding.start(problem.output));
  for (int64_t step = 0; step < problem.steps; ++step) {
    CA_RETURN_IF_ERROR(encoding.attend(problem.output));
    CA_RETURN_IF_ERROR(encoding.add_change(problem.output));
  }
  if (!all_finite(problem.output, encoding.rows() * problem.dim)) context.mark_non_finite();
  return Status::success();
}

}  // namespace cluster_attention::kernels
