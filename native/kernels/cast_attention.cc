#include "native/kernels/cast_attention.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/cast_affinity.h"
#include "native/kernels/cast_clusters.h"
#include "native/kernels/cast_combination.h"
#include "native/kernels/cast_selection.h"
#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

Status cast_attention(const CastAttentionProblem& problem, Context& context) {
  CA_RETURN_IF_ERROR(check_cast_indices(problem, context));
  CastState state(problem, context);
  const AttentionShape& shape = problem.inputs.shape;
  CA_RETURN_IF_ERROR(state.allocate(
      checked_size(problem.clusters, problem.cluster_size, shape.value_dim),
      std::max({affinity_scratch(state), cluster_scratch(state), combination_scratch(state)})));
  CA_RETURN_IF_ERROR(prepare_selection(state));
  for (int64_t batch = 0; batch < shape.batch; batch += state.group) {
    const int64_t sequences = std::min(state.group, shape.batch - batch);
    state.begin_group(batch, sequences);
    CA_RETURN_IF_ERROR(select_members(state, sequences));
    const int64_t pairs = sequences * shape.heads;
    for (int64_t first = 0; first < pairs; first += state.wave) {
      const int64_t count = std::min(state.wave, pairs - first);
      CA_RETURN_IF_ERROR(attend_within_clusters(state, first, count));
      CA_RETURN_IF_ERROR(combine_clusters(state, first, count));
    }
  }
  return Status::success();
}

}  // namespace cluster_attention::kernels
