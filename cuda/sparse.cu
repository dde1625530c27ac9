#include <algorithm>
#include <limits>

#include "cuda/counting_sort.h"
#include "cuda/launch.h"
#include "cuda/sparse.cuh"

namespace cluster_attention::cuda {

Status open_lists(Session& session, DeviceWorkspace::Scope& scope, SparseParams& params) {
  if (params.sparse.labels == nullptr) return Status::success();
  const int64_t sequences = params.shape.batch * params.shape.heads;
  SortProblem sort;
  sort.sequences = sequences;
  sort.heads = params.shape.heads;
  sort.length = params.shape.query_length;
  sort.clusters = params.sparse.clusters;
  sort.labels = params.sparse.labels;
  sort.lengths = params.query_lengths;
  CA_RETURN_IF_ERROR(scope.allocate(&sort.offsets, checked_size(sequences, sort.clusters + 1)));
  CA_RETURN_IF_ERROR(scope.allocate(&sort.order, checked_size(sequences, sort.length)));
  params.offsets = sort.offsets;
  params.order = sort.order;
  // One at least: the lists are checked even where no query reads them.
  params.tiles = std::max<int64_t>(divide_up(sort.length, kFmaRows), 1);
  return sort_by_label(session, sort);
}

namespace {

/// One of the two kernels: a warp per query, or a block per 128 queries in sorted order.
template <typename Params>
Status launch_sparse(Session& session, const Params& params, void (*per_query)(Params),
                     void (*per_cluster)(Params)) {
  const AttentionShape& shape = params.lists.shape;
  const int64_t sequences = shape.batch * shape.heads;
  if (params.lists.sparse.labels != nullptr) {
    return launch(session, sequences * params.lists.tiles, kFmaThreads, sizeof(FmaTileStorage),
                  per_cluster, params);
  }
  return launch(session, divide_up(sequences * shape.query_length, kSparseThreads / kWarp),
                kSparseThreads, 0, per_query, params);
}

}  // namespace

Status sparse_products(Session& session, const SparseDotProblem& problem,
                       const SparseProductForm& form, const Call& call) {
  // grid: see launch_sparse()
  DeviceWorkspace::Scope scope(session.workspace());
  SparseDotParams params{};
  params.lists = sparse_params(session, problem, problem.key, problem.shape.head_dim);
  params.query = problem.query;
  params.form = form;
  params.output = problem.output;
  CA_RETURN_IF_ERROR(open_lists(session, scope, params.lists));
  return with_read(call, [&](auto read) {
    constexpr Read kRead = decltype(read)::value;
    return launch_sparse(session, params, sparse_dot_kernel<kRead>,
                         sparse_dot_cluster_kernel<kRead>);
  });
}

Status sparse_dot(Session& session, const SparseDotProblem& problem, const Call& call) {
  return sparse_products(session, problem, {-std::numeric_limits<float>::infinity(), true}, call);
}

Status sparse_sums(Session& session, const SparseWeightedSumProblem& problem, bool stored_weights,
                   const Call& call) {
  // grid: see launch_sparse()
  DeviceWorkspace::Scope scope(session.workspace());
  SparseSumParams params{};
  params.lists = sparse_params(session, problem, problem.value, problem.shape.value_dim);
  params.weights = problem.weights;
  params.stored_weights = stored_weights;
  params.round_weights = call.precision == Precision::bfloat16;
  params.output = problem.output;
  CA_RETURN_IF_ERROR(open_lists(session, scope, params.lists));
  return with_read(call, [&](auto read) {
    constexpr Read kRead = decltype(read)::value;
    return launch_sparse(session, params, sparse_sum_kernel<kRead>,
                         sparse_sum_cluster_kernel<kRead>);
  });
}

Status sparse_weighted_sum(Session& session, const SparseWeightedSumProblem& problem,
                           const Call& call) {
  return sparse_sums(session, problem, false, call);
}

}  // namespace cluster_attention::cuda
