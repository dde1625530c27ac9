#include <algorithm>

#include "cuda/hamming_kmeans.cuh"
#include "cuda/launch.h"

namespace cluster_attention::cuda {

HammingPlan plan_hamming_kmeans(int64_t sequences, int64_t length, int64_t clusters,
                                int64_t multiprocessors, int64_t shared_bytes) {
  /// Pairs of a hash and a centroid that one block compares sooner than launches follow each other.
  constexpr int64_t kAlonePairs = 1 << 18;
  /// Fewest hashes of a part: its counters cost as much as they do.
  constexpr int64_t kFewestRows = 256;
  HammingPlan plan;
  plan.shared_counters = HammingLayout(clusters, true).bytes <= shared_bytes;
  const bool enough_blocks = sequences >= 2 * multiprocessors;
  plan.alone = plan.shared_counters && length <= kHammingPartRows &&
               (enough_blocks || length * clusters <= kAlonePairs);
  if (!plan.alone) {
    const int64_t wanted = divide_up(2 * multiprocessors, std::max<int64_t>(sequences, 1));
    plan.parts = std::clamp<int64_t>(divide_up(length, kFewestRows), 1, wanted);
    plan.parts = std::max(plan.parts, divide_up(length, kHammingPartRows));
  }
  const int64_t rows = divide_up(length, plan.parts);
  plan.threads = static_cast<int>(std::clamp<int64_t>(round_up(rows, 32), 64, kHammingThreads));
  return plan;
}

Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads) {
  // grid: a block per sequence, or `parts` blocks per sequence and iteration
  if (problem.batch == 0) return Status::success();
  HammingParams params{};
  params.problem = problem;
  params.heads = heads;
  params.clusters = std::min(problem.clusters, problem.length);
  const HammingPlan plan = plan_hamming_kmeans(problem.batch, problem.length, params.clusters,
                                               session.multiprocessors(), session.shared_bytes());
  const int64_t bytes = HammingLayout(params.clusters, plan.shared_counters).bytes;
  if (plan.alone) {
    return launch(session, problem.batch, plan.threads, bytes, hamming_alone_kernel<>, params);
  }
  params.parts = plan.parts;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(session.tickets(problem.batch, &params.tickets));
  CA_RETURN_IF_ERROR(scope.allocate(&params.state, problem.batch));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.ones, checked_size(problem.batch, params.clusters, kHammingBits)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.members, checked_size(problem.batch, params.clusters)));
  CA_RETURN_IF_ERROR(
      launch(session, problem.batch, kHammingThreads, 0, hamming_start_kernel<>, params));
  for (int64_t i = 0; i <= problem.max_iterations; ++i) {
    params.iteration = i;
    CA_RETURN_IF_ERROR(launch(
        session, problem.batch * plan.parts, plan.threads, bytes,
        plan.shared_counters ? hamming_iteration_kernel<true> : hamming_iteration_kernel<false>,
        params));
  }
  return Status::success();
}

Status hamming_kmeans(Session& session, const HammingKMeansProblem& problem, const Call&) {
  return group_hashes(session, problem, 1);
}

}  // namespace cluster_attention::cuda
