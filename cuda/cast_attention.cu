#include "cuda/assignment.h"
#include "cuda/cast_affinity.cuh"
#include "cuda/cast_attention.h"
#include "cuda/cast_clusters.cuh"
#include "cuda/cast_combination.cuh"
#include "cuda/cast_launch.h"
#include "cuda/cast_selection.cuh"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

CastParams cast_params(Session& session, const CastAttentionProblem& problem, const Call& call) {
  const AttentionInputs& inputs = problem.inputs;
  const bool rounds = call.precision == Precision::bfloat16;
  CastParams params;
  params.batch = inputs.shape.batch;
  params.heads = inputs.shape.heads;
  params.tokens = inputs.shape.key_length;
  params.dim = inputs.shape.head_dim;
  params.value_dim = inputs.shape.value_dim;
  params.clusters = problem.clusters;
  params.cluster_size = problem.cluster_size;
  params.query = tensor_of(inputs.query, call.storage);
  params.key = tensor_of(inputs.key, call.storage);
  params.value = tensor_of(inputs.value, call.storage);
  params.surrogates.data = problem.surrogates;
  params.surrogates.head_stride = problem.clusters * params.dim;
  params.surrogates.row_stride = params.dim;
  params.gate = problem.gate;
  params.round_gate = rounds;
  params.lengths = inputs.key_lengths;
  params.selection = problem.selection;
  params.activation = problem.activation;
  params.has_scale = problem.has_scale;
  params.scale = inputs.scale;
  params.given = problem.given_indices;
  params.output = problem.output;
  params.storage = call.storage;
  params.indices = problem.indices;
  params.coverage = problem.coverage;
  params.flags = session.flags();
  return params;
}

Status launch_given_members(Session& session, const CastParams& params) {
  // grid: clusters x batch entries
  return launch(session, params.batch * params.clusters, kSelectionThreads,
                kWarp * static_cast<int64_t>(sizeof(int32_t)), take_members, params);
}

namespace {

/// All scratch memory of a call; -1 from checked_size() is refused by allocate().
Status allocate(DeviceWorkspace::Scope& scope, CastParams& params) {
  const int64_t tokens = checked_size(params.batch, params.tokens);
  const int64_t matrix = checked_size(params.batch, params.clusters, params.tokens);
  const int64_t lists = checked_size(params.batch, params.clusters);
  const int64_t summaries = checked_size(params.batch, params.heads, params.clusters);
  const int64_t summary_values = checked_size(summaries, params.value_dim);
  const bool top_k = params.selection == Selection::top_k;
  const bool single = params.selection == Selection::single_assignment;
  int64_t sorted = 0;
  if (single) {
    params.order_size = next_power_of_two(params.tokens);
    sorted = checked_size(params.batch, params.order_size);
  } else if (top_k && next_power_of_two(params.cluster_size) > kSharedMembers) {
    params.order_size = next_power_of_two(params.cluster_size);
    sorted = checked_size(lists, params.order_size);
  }
  params.cluster_stride = single ? 1 : params.tokens;
  params.token_stride = single ? params.clusters : 1;

  CA_RETURN_IF_ERROR(scope.allocate(&params.query_factor, tokens));
  CA_RETURN_IF_ERROR(scope.allocate(&params.key_factor, tokens));
  if (params.selection != Selection::given) {
    CA_RETURN_IF_ERROR(scope.allocate(&params.affinity, matrix));
    CA_RETURN_IF_ERROR(scope.allocate(&params.key_affinity, matrix));
  }
  // Once A_g is made, A_k gives way to the inverse map.
  if (top_k) params.slots = reinterpret_cast<int32_t*>(params.key_affinity);
  if (params.selection == Selection::given)
    CA_RETURN_IF_ERROR(scope.allocate(&params.slots, matrix));
  if (single) {
    CA_RETURN_IF_ERROR(scope.allocate(&params.own_cluster, tokens));
    CA_RETURN_IF_ERROR(scope.allocate(&params.own_slot, tokens));
  }
  CA_RETURN_IF_ERROR(scope.allocate(
      &params.memberships, checked_size(params.batch, tiles_of(params.clusters), params.tokens)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.order, sorted));
  CA_RETURN_IF_ERROR(scope.allocate(&params.counts, lists));
  CA_RETURN_IF_ERROR(scope.allocate(&params.members, checked_size(lists, params.cluster_size)));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.intra, checked_size(summary_values, params.cluster_size)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.inter, summary_values));
  CA_RETURN_IF_ERROR(scope.allocate(&params.inter_not_finite,
                                    checked_size(summaries, value_blocks_of(params.value_dim))));
  return scope.allocate(&params.covered, params.batch);
}

Status launch_selection(Session& session, const CastParams& params) {
  // grids: clusters x batch entries; batch entries
  const int64_t lists = params.batch * params.clusters;
  switch (params.selection) {
    case Selection::top_k:
      return launch(session, lists, kBlockSelectionThreads,
                    selection_layout(params.cluster_size).bytes, select_members, params);
    case Selection::single_assignment:
      return launch(session, params.batch, kSelectionThreads,
                    static_cast<int64_t>(sizeof(RoundData)), assign_members, params);
    case Selection::given:
      return launch_given_members(session, params);
  }
  return {StatusCode::unsupported, "assignment", -1};
}

template <bool kSplit>
Status launch_cast(Session& session, CastParams& params) {
  params.query_tiles = resident_tiles(session, params.dim, [](int tiles) {
    const int64_t clusters = cluster_layout<kSplit>(tiles).bytes;
    const int64_t combination = combination_layout<kSplit>(tiles).bytes;
    return clusters > combination ? clusters : combination;
  });
  const int64_t sequences = params.batch * params.heads;
  const int64_t tiles = token_tiles(params.tokens);
  const int64_t value_blocks = value_blocks_of(params.value_dim);
  constexpr RowAccess kFast = kSplit ? RowAccess::vectors : RowAccess::copies;
  const bool fast_keys = access_of(params.key, params.dim) == kFast;
  if (params.selection != Selection::given) {
    const bool fast = fast_keys && access_of(params.query, params.dim) == kFast &&
                      access_of(params.surrogates, params.dim) == RowAccess::vectors;
    // grid: tiles of tokens x batch entries
    CA_RETURN_IF_ERROR(launch(
        session, params.batch * tiles, kTileThreads, affinity_layout<kSplit>().bytes,
        fast ? cast_affinity<kSplit, kFast> : cast_affinity<kSplit, RowAccess::any>, params));
  }
  CA_RETURN_IF_ERROR(launch_selection(session, params));
  const bool small = params.dim <= kTile && params.value_dim <= kTile;
  const bool fast = small && fast_keys && access_of(params.value, params.value_dim) == kFast;
  // grid: 128 value columns x tiles of a cluster's queries x clusters x sequences
  CA_RETURN_IF_ERROR(launch(
      session, sequences * params.clusters * member_tiles(params.cluster_size) * value_blocks,
      kTileThreads, cluster_layout<kSplit>(params.query_tiles).bytes,
      fast ? cast_clusters<kSplit, kFast> : cast_clusters<kSplit, RowAccess::any>, params));
  // grid: 128 value columns x tiles of tokens x sequences
  return launch(session, sequences * tiles * value_blocks, kTileThreads,
                combination_layout<kSplit>(params.query_tiles).bytes,
                small && params.value_dim % 4 == 0 &&
                        access_of(params.surrogates, params.dim) == RowAccess::vectors
                    ? cast_combination<kSplit, true>
                    : cast_combination<kSplit, false>,
                params);
}

}  // namespace

Status cast_attention(Session& session, const CastAttentionProblem& problem, const Call& call) {
  CastParams params = cast_params(session, problem, call);
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(allocate(scope, params));
  CA_RETURN_IF_ERROR(session.tickets(params.batch, &params.tickets));
  return call.precision == Precision::float32 ? launch_cast<true>(session, params)
                                              : launch_cast<false>(session, params);
}

}  // namespace cluster_attention::cuda
