#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sort_cluster.cuh"

namespace cluster_attention::cuda {

namespace {

Status sort_in_two_launches(Session& session, const SortProblem& problem) {
  // grid: 8 parts of a sequence per block, one per warp
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

Status sort_in_clusters(Session& session, const SortProblem& problem, const SortPlan& plan) {
  // grid: a cluster of blocks per sequence
  const SortClusterParams params = sort_cluster_params(session, problem, plan);
  const LaunchShape shape{problem.sequences * plan.parts, plan.warps * kWarp,
                          sort_cluster_layout(plan.warps, plan.run_rows, problem.clusters).bytes,
                          plan.parts};
  return launch(session, shape, sort_cluster_kernel<>, params);
}

}  // namespace

int64_t sort_part_rows(int64_t clusters) {
  constexpr int64_t kFewest = 256;
  return std::max(kFewest, round_up(clusters / 8, kFewest));
}

SortPlan plan_sort_clusters(int64_t sequences, int64_t length, int64_t clusters,
                            const ClusterLimits& limits) {
  /// Most rows of a warp: past them, waiting for one warp takes longer than launches do.
  constexpr int64_t kMostRunRows = 1024;
  const auto plan_of = [&](int64_t parts) {
    SortPlan plan;
    plan.parts = parts;
    const int64_t rows = divide_up(length, parts);
    plan.warps = std::clamp<int64_t>(divide_up(rows, kWarp), 1, kMostSortWarps);
    plan.run_rows = round_up(divide_up(rows, plan.warps), kWarp);
    return plan;
  };
  // Blocks wait for each other, and read each other's counts.
  const auto overhead = [](int64_t parts) { return 64 * parts; };
  // Sizes of arrays that were allocated: the products do not leave int64_t.
  const auto fits = [&](int64_t parts) {
    const SortPlan plan = plan_of(parts);
    return plan.run_rows <= kMostRunRows &&
           sort_cluster_layout(plan.warps, plan.run_rows, clusters).bytes <= limits.shared_bytes;
  };
  const int64_t parts = choose_cluster_blocks(sequences, length, limits, overhead, fits);
  return parts > 0 ? plan_of(parts) : SortPlan();
}

Status sort_by_label(Session& session, const SortProblem& problem) {
  return sort_by_label(
      session, problem,
      plan_sort_clusters(problem.sequences, problem.length, problem.clusters, session.limits()));
}

Status sort_by_label(Session& session, const SortProblem& problem, const SortPlan& plan) {
  if (problem.sequences == 0) return Status::success();
  return plan.parts > 0 ? sort_in_clusters(session, problem, plan)
                        : sort_in_two_launches(session, problem);
}

}  // namespace cluster_attention::cuda
