#include "cuda/aggregate.h"
#include "cuda/clustering_gradient.cuh"
#include "cuda/counting_sort.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status aggregate_gradient(Session& session, const AggregateGradientProblem& problem,
                          const Call& call) {
  // grid: see sort_by_label(), which checks the labels and counts; then a warp per row
  if (problem.inputs.data == nullptr) return Status::success();
  const AggregateProblem& forward = problem.forward;
  const int64_t sequences = forward.batch * forward.heads;
  DeviceWorkspace::Scope scope(session.workspace());
  SortProblem sort;
  sort.sequences = sequences;
  sort.heads = forward.heads;
  sort.length = forward.length;
  sort.clusters = forward.clusters;
  sort.labels = forward.labels;
  CA_RETURN_IF_ERROR(scope.allocate(&sort.offsets, checked_size(sequences, sort.clusters + 1)));
  CA_RETURN_IF_ERROR(scope.allocate(&sort.order, checked_size(sequences, sort.length)));
  CA_RETURN_IF_ERROR(sort_by_label(session, sort));
  const ClusterSpreadParams params{problem, sort.offsets, session.flags()};
  return with_read(call, [&](auto read) {
    return launch(session, divide_up(sequences * forward.length, kClusterSpreadThreads / kWarp),
                  kClusterSpreadThreads, 0, spread_gradient_kernel<decltype(read)::value>, params);
  });
}

Status broadcast_gradient(Session& session, const BroadcastGradientProblem& problem,
                          const Call& call) {
  // grid: see aggregate()
  if (problem.inputs == nullptr) return Status::success();
  const BroadcastProblem& forward = problem.forward;
  AggregateProblem sum;
  sum.batch = forward.batch;
  sum.length = forward.length;
  sum.dim = forward.dim;
  sum.clusters = forward.clusters;
  sum.reduce = Reduce::sum;
  sum.inputs = dense_rows(problem.output_gradient, forward.length, forward.dim);
  sum.labels = forward.labels;
  sum.output = problem.inputs;
  return aggregate(session, sum, call);
}

}  // namespace cluster_attention::cuda
