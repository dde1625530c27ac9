#include <algorithm>
#include <limits>

#include "cuda/counting_sort.h"
#include "cuda/launch.h"
#include "cuda/sparse_gradient.cuh"

namespace cluster_attention::cuda {

namespace {

/// Sorts the slots of every sequence by key, and adds.
Status transposed_sum(Session& session, DeviceWorkspace::Scope& scope, TransposedSumParams& params,
                      const Call& call) {
  // grid: see sort_by_label(); then a warp per key and 32 columns
  SparseParams& lists = params.lists;
  CA_RETURN_IF_ERROR(open_lists(session, scope, lists));
  const AttentionShape& shape = lists.shape;
  const int64_t sequences = shape.batch * shape.heads;
  const bool per_cluster = lists.sparse.labels != nullptr;
  params.lists_per_sequence = per_cluster ? lists.sparse.clusters : shape.query_length;
  SortProblem sort;
  sort.sequences = sequences;
  sort.heads = shape.heads;
  sort.length = checked_size(params.lists_per_sequence, lists.sparse.k);
  if (sort.length < 0 || sort.length > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "indices", -1};
  }
  sort.clusters = shape.key_length;
  sort.labels = lists.sparse.indices;
  sort.argument = SortArgument::indices;
  if (!per_cluster) {  // the lists of padded queries are not read
    sort.lengths = lists.query_lengths;
    sort.length_unit = lists.sparse.k;
  }
  sort.part_rows = std::max(sort_part_rows(0), round_up(sort.clusters, kWarp));
  int32_t* offsets = nullptr;
  int32_t* order = nullptr;
  CA_RETURN_IF_ERROR(scope.allocate(&offsets, checked_size(sequences, sort.clusters + 1)));
  CA_RETURN_IF_ERROR(scope.allocate(&order, checked_size(sequences, sort.length)));
  sort.offsets = offsets;
  sort.order = order;
  CA_RETURN_IF_ERROR(sort_by_label(session, sort));
  params.key_offsets = offsets;
  params.slots = order;
  const int64_t warps = sequences * shape.key_length * divide_up(lists.dim, kWarp);
  return with_read(call, [&](auto read) {
    return launch(session, divide_up(warps, kSparseThreads / kWarp), kSparseThreads, 0,
                  transposed_sum_kernel<decltype(read)::value>, params);
  });
}

}  // namespace

Status sparse_dot_gradient(Session& session, const SparseDotGradientProblem& problem,
                           const Call& call) {
  const SparseDotProblem& forward = problem.forward;
  if (problem.query.data != nullptr) {
    SparseWeightedSumProblem query;
    query.shape = forward.shape;
    query.shape.value_dim = forward.shape.head_dim;
    query.weights = problem.output_gradient;
    query.value = forward.key;
    query.sparse = forward.sparse;
    query.query_lengths = forward.query_lengths;
    query.key_lengths = forward.key_lengths;
    query.output = problem.query;
    CA_RETURN_IF_ERROR(sparse_sums(session, query, true, call));
  }
  if (problem.key.data == nullptr) return Status::success();
  DeviceWorkspace::Scope scope(session.workspace());
  TransposedSumParams params{};
  params.lists = sparse_params(session, forward, forward.query, forward.shape.head_dim);
  params.weights = problem.output_gradient;
  params.stored_weights = true;
  params.output = problem.key;
  return transposed_sum(session, scope, params, call);
}

Status sparse_weighted_sum_gradient(Session& session,
                                    const SparseWeightedSumGradientProblem& problem,
                                    const Call& call) {
  const SparseWeightedSumProblem& forward = problem.forward;
  if (problem.weights != nullptr) {
    SparseDotProblem weights;
    weights.shape = forward.shape;
    weights.shape.head_dim = forward.shape.value_dim;
    weights.query = problem.output_gradient;
    weights.key = forward.value;
    weights.sparse = forward.sparse;
    weights.query_lengths = forward.query_lengths;
    weights.key_lengths = forward.key_lengths;
    weights.output = problem.weights;
    CA_RETURN_IF_ERROR(sparse_products(session, weights, {0.0f, false}, call));
  }
  if (problem.value.data == nullptr) return Status::success();
  DeviceWorkspace::Scope scope(session.workspace());
  TransposedSumParams params{};
  params.lists = sparse_params(session, forward, problem.output_gradient, forward.shape.value_dim);
  params.weights = forward.weights;
  params.round_weights = call.precision == Precision::bfloat16;
  params.output = problem.value;
  return transposed_sum(session, scope, params, call);
}

}  // namespace cluster_attention::cuda
