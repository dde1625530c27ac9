#include <algorithm>

#include "cuda/counting_sort.cuh"
#include "cuda/launch.h"

namespace cluster_attention::cuda {

int64_t sort_part_rows(int64_t clusters) {
  constexpr int64_t kFewest = 256;
  return std::max(kFewest, round_up(clusters / 8, kFewest));
}

Status sort_by_label(Session& session, const SortProblem& problem) {
  // grid: 8 parts of a sequence per block, one per warp
  if (problem.sequences == 0) return Status::success();
  SortParams params{};
  params.problem = problem;
  plan_sort(params);
  params.flags = session.flags();
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(scope.allocate(
      &params.counts, checked_size(problem.sequences, params.parts, problem.clusters)));
  CA_RETURN_IF_ERROR(session.tickets(problem.sequences, &params.tickets));
  const int64_t blocks = problem.sequences * params.blocks;
  CA_RETURN_IF_ERROR(launch(session, blocks, kSortThreads, kWarp * sizeof(int32_t),
                            count_labels_kernel<>, params));
  return launch(session, blocks, kSortThreads, 0, place_rows_kernel<>, params);
}

}  // namespace cluster_attention::cuda
