#include <algorithm>

#include "cuda/hamming_kmeans.cuh"
#include "cuda/hamming_sort.cuh"
#include "cuda/iterations.h"
#include "cuda/launch.h"

namespace cluster_attention::cuda {

namespace {

bool plan_clusters(int64_t sequences, int64_t length, int64_t clusters, const ClusterLimits& limits,
                   HammingPlan& plan) {
  const bool warpgroups = plan.way == HammingPlan::Way::warpgroups;
  if (clusters > kClusterHammingClusters || (warpgroups && !limits.warpgroup_hamming)) {
    return false;
  }
  constexpr int64_t kMostWarps = kMostHammingThreads / kWarp;
  // Measured on an H200, when a byte held one bit of a hash: eleven rounds take some 0.034 µs per
  // hash of a block, and otherwise the time of so many hashes: to wait for each other, for each
  // block to hear from, and for the centroids of a warp. The first hardly matters for the choice.
  const auto overhead = [&](int64_t parts) {
    return 336 + 51 * parts + 384 * divide_up(clusters, parts * kMostWarps / 2);
  };
  const auto fits = [&](int64_t parts) {
    const int64_t rows = divide_up(length, parts);
    return rows <= kHammingPartRows &&
           cluster_hamming_layout(rows, clusters, parts, warpgroups).bytes <= limits.shared_bytes;
  };
  const int64_t parts = choose_cluster_blocks(sequences, length, limits, overhead, fits);
  if (parts == 0) return false;
  plan.parts = parts;
  if (warpgroups) {
    constexpr int64_t kMostGroups = kWarpgroupHammingThreads / kWarpgroup;
    const int64_t groups = divide_up(divide_up(length, parts), kWarpgroupHashes);
    plan.threads = static_cast<int>(kWarpgroup * std::clamp<int64_t>(groups, 1, kMostGroups));
    return true;
  }
  // A tile for each warp, or two where these are more than half of the warps.
  const int64_t tiles = divide_up(divide_up(length, parts), 16);
  const int64_t wanted =
      tiles <= kMostWarps / 2 ? tiles : std::max(kMostWarps / 2, (tiles + 1) / 2);
  const int64_t warps = std::max(wanted, std::min(divide_up(clusters, parts), kMostWarps / 2));
  plan.threads = static_cast<int>(kWarp * std::clamp<int64_t>(warps, 2, kMostWarps));
  return true;
}

bool plan_launches(int64_t sequences, int64_t length, int64_t clusters, const ClusterLimits& limits,
                   HammingPlan& plan) {
  /// Fewest hashes of a part: its counters cost as much as they do.
  constexpr int64_t kFewestRows = 256;
  plan.shared_counters = HammingLayout(clusters, true).bytes <= limits.shared_bytes;
  const int64_t wanted = divide_up(2 * limits.multiprocessors, std::max<int64_t>(sequences, 1));
  plan.parts = std::clamp<int64_t>(divide_up(length, kFewestRows), 1, wanted);
  plan.parts = std::max(plan.parts, divide_up(length, kHammingPartRows));
  const int64_t rows = divide_up(length, plan.parts);
  plan.threads = static_cast<int>(std::clamp<int64_t>(round_up(rows, 32), 64, kHammingThreads));
  return true;
}

Status launch_clusters(Session& session, const HammingParams& params, const HammingPlan& plan) {
  const HammingSteps steps = hamming_steps(params.problem.length, plan);
  const int64_t bytes = cluster_hamming_layout(params, steps == HammingSteps::warpgroups).bytes;
  const LaunchShape shape{params.problem.batch * plan.parts, plan.threads, bytes, plan.parts};
  switch (steps) {
    case HammingSteps::one_tile:
      return launch(session, shape, hamming_cluster_kernel<1>, params);
    case HammingSteps::two_tiles:
      return launch(session, shape, hamming_cluster_kernel<kMostHashTiles>, params);
    case HammingSteps::warpgroups:
      return launch(session, shape, hamming_warpgroups_kernel<>, params);
  }
  return Status::success();
}

Status launch_iterations(Session& session, HammingParams params, const HammingPlan& plan) {
  // grid: `parts` blocks per sequence and iteration
  const HammingKMeansProblem& problem = params.problem;
  const int64_t bytes = HammingLayout(params.clusters, plan.shared_counters).bytes;
  DeviceWorkspace::Scope scope(session.workspace());
  params.flags = session.flags();
  CA_RETURN_IF_ERROR(session.tickets(problem.batch, &params.tickets));
  CA_RETURN_IF_ERROR(scope.allocate(&params.state, problem.batch));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.ones, checked_size(problem.batch, params.clusters, kHammingBits)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.members, checked_size(problem.batch, params.clusters)));
  CA_RETURN_IF_ERROR(
      launch(session, problem.batch, kHammingThreads, 0, hamming_start_kernel<>, params));
  return iterate_until_settled(session, problem.batch, problem.max_iterations, [&](int64_t i) {
    params.iteration = i;
    return launch(
        session, problem.batch * plan.parts, plan.threads, bytes,
        plan.shared_counters ? hamming_iteration_kernel<true> : hamming_iteration_kernel<false>,
        params);
  });
}

}  // namespace

bool plan_hamming_way(HammingPlan::Way way, int64_t sequences, int64_t length, int64_t clusters,
                      const ClusterLimits& limits, HammingPlan& plan) {
  plan = HammingPlan();
  plan.way = way;
  return way == HammingPlan::Way::launches
             ? plan_launches(sequences, length, clusters, limits, plan)
             : plan_clusters(sequences, length, clusters, limits, plan);
}

HammingPlan plan_hamming_kmeans(int64_t sequences, int64_t length, int64_t clusters,
                                const ClusterLimits& limits) {
  /// Pairs of a hash and a centroid that launches compare on all multiprocessors in the time in
  /// which one block compares as many on tensor cores, and waits for no launch.
  constexpr int64_t kBlockShare = 5;
  /// Hashes that even one block goes through sooner than launches follow each other.
  constexpr int64_t kShortLength = 4096;
  HammingPlan plan;
  for (HammingPlan::Way way : {HammingPlan::Way::warpgroups, HammingPlan::Way::clusters}) {
    if (plan_hamming_way(way, sequences, length, clusters, limits, plan) &&
        (length <= kShortLength * plan.parts ||
         kBlockShare * plan.parts * sequences >= limits.multiprocessors)) {
      return plan;
    }
  }
  plan_hamming_way(HammingPlan::Way::launches, sequences, length, clusters, limits, plan);
  return plan;
}

Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads,
                    const SortProblem* sort) {
  const int64_t clusters = std::min(problem.clusters, problem.length);
  return group_hashes(
      session, problem, heads,
      plan_hamming_kmeans(problem.batch, problem.length, clusters, session.limits()), sort);
}

Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads,
                    const HammingPlan& plan, const SortProblem* sort) {
  // grid: a cluster of blocks, or one block, per sequence
  if (problem.batch == 0) return Status::success();
  const HammingParams params = hamming_cluster_params(problem, heads, plan, sort);
  if (plan.way != HammingPlan::Way::launches) return launch_clusters(session, params, plan);
  CA_RETURN_IF_ERROR(launch_iterations(session, params, plan));
  return sort != nullptr ? sort_by_label(session, *sort) : Status::success();
}

Status hamming_kmeans(Session& session, const HammingKMeansProblem& problem, const Call&) {
  return group_hashes(session, problem, 1);
}

}  // namespace cluster_attention::cuda
