#include "cuda/aggregate.h"
#include "cuda/counting_sort.h"
#include "cuda/member_sums.h"
#include "cuda/session.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status aggregate(Session& session, const AggregateProblem& problem, const Call& call) {
  // grid: see sort_by_label() and sum_members()
  const int64_t sequences = problem.batch * problem.heads;
  DeviceWorkspace::Scope scope(session.workspace());
  SortProblem sort;
  sort.sequences = sequences;
  sort.heads = problem.heads;
  sort.length = problem.length;
  sort.clusters = problem.clusters;
  sort.labels = problem.labels;
  CA_RETURN_IF_ERROR(scope.allocate(&sort.offsets, checked_size(sequences, problem.clusters + 1)));
  CA_RETURN_IF_ERROR(scope.allocate(&sort.order, checked_size(sequences, problem.length)));
  CA_RETURN_IF_ERROR(sort_by_label(session, sort));
  MemberSumsProblem sums;
  sums.sequences = sequences;
  sums.heads = problem.heads;
  sums.length = problem.length;
  sums.clusters = problem.clusters;
  sums.dim = problem.dim;
  sums.reduce = problem.reduce;
  sums.inputs = problem.inputs;
  sums.offsets = sort.offsets;
  sums.order = sort.order;
  sums.output = problem.output;
  sums.output_in_storage = true;
  return sum_members(session, sums, call);
}

}  // namespace cluster_attention::cuda
