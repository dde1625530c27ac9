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

/// Elements of a storage in a workspace of floats.
Status allocate_stored(DeviceWorkspace::Scope& scope, Storage storage, float** data,
                       int64_t elements) {
  const bool halves = storage == Storage::bfloat16 && elements >= 0;
  return scope.allocate(data, halves ? (elements + 1) / 2 : elements);
}

/// What steps 4 and 5 leave to step 6, in the storage of the operands of products.
Status allocate_operands(DeviceWorkspace::Scope& scope, CastParams& params, Storage storage) {
  const int64_t summaries = checked_size(params.batch, params.heads, params.clusters);
  const int64_t surrogates = checked_size(params.heads, params.clusters);
  CA_RETURN_IF_ERROR(
      allocate_stored(scope, storage, &params.intra,
                      checked_size(summaries, params.cluster_size + 1, params.value_dim)));
  CA_RETURN_IF_ERROR(
      allocate_stored(scope, storage, &params.inter, checked_size(summaries, params.value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.inter_not_finite,
                                    checked_size(summaries, value_blocks_of(params.value_dim))));
  params.operand_surrogates = params.surrogates;
  if (storage == Storage::float32) return Status::success();
  CA_RETURN_IF_ERROR(allocate_stored(scope, storage, &params.rounded_surrogates,
                                     checked_size(surrogates, params.dim)));
  params.operand_surrogates.data = params.rounded_surrogates;
  params.operand_surrogates.storage = storage;
  return Status::success();
}

/// All scratch memory of a call; -1 from checked_size() is refused by allocate().
Status allocate(DeviceWorkspace::Scope& scope, CastParams& params) {
  const int64_t tokens = checked_size(params.batch, params.tokens);
  const int64_t matrix = checked_size(params.batch, params.clusters, params.tokens);
  const int64_t lists = checked_size(params.batch, params.clusters);
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
  if (single) CA_RETURN_IF_ERROR(scope.allocate(&params.own_slot, tokens));
  CA_RETURN_IF_ERROR(scope.allocate(
      &params.memberships, checked_size(params.batch, tiles_of(params.clusters), params.tokens)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.order, sorted));
  CA_RETURN_IF_ERROR(scope.allocate(&params.counts, lists));
  CA_RETURN_IF_ERROR(scope.allocate(&params.members, checked_size(lists, params.cluster_size)));
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
Status launch_clusters(Session& session, CastParams& params) {
  constexpr RowAccess kFast = kSplit ? RowAccess::vectors : RowAccess::copies;
  const bool small = params.dim <= kTile && params.value_dim <= kTile &&
                     access_of(params.query, params.dim) == kFast &&
                     access_of(params.key, params.dim) == kFast &&
                     access_of(params.value, params.value_dim) == kFast;
  if (small) {
    params.member_groups = small_member_groups<kSplit>(params.cluster_size, session.shared_bytes());
  } else {
    params.query_tiles = resident_tiles(
        session, params.dim, [](int tiles) { return cluster_layout<kSplit>(1, tiles).bytes; });
  }
  const int64_t lists = params.batch * params.heads * params.clusters;
  // grid: 128 value columns x blocks of a cluster x clusters x sequences
  return launch(session, lists * cluster_blocks(params) * value_blocks_of(params.value_dim),
                {kTileThreads, params.member_groups},
                cluster_layout<kSplit>(params.member_groups, params.query_tiles).bytes,
                small ? cast_clusters<kSplit, kFast> : cast_clusters<kSplit, RowAccess::any>,
                params);
}

template <bool kSplit>
Status launch_combination(Session& session, CastParams& params) {
  constexpr RowAccess kFast = kSplit ? RowAccess::vectors : RowAccess::copies;
  const bool small = params.dim <= kTile && params.value_dim <= kTile &&
                     params.value_dim * (kSplit ? 4 : 2) % 16 == 0 &&
                     access_of(params.query, params.dim) == kFast &&
                     access_of(params.operand_surrogates, params.dim) == kFast;
  if (small) {
    params.combination_groups =
        small_combination_groups<kSplit, kFast>(params.tokens, session.shared_bytes());
  } else {
    params.combination_query_tiles = resident_tiles(session, params.dim, [](int tiles) {
      return combination_layout<kSplit, RowAccess::any>(1, tiles).bytes;
    });
  }
  const int groups = params.combination_groups;
  const CombinationLayout layout =
      small ? combination_layout<kSplit, kFast>(groups, 1)
            : combination_layout<kSplit, RowAccess::any>(groups, params.combination_query_tiles);
  // grid: 128 value columns x blocks of tokens x sequences
  return launch(
      session,
      params.batch * params.heads * combination_blocks(params) * value_blocks_of(params.value_dim),
      {kTileThreads, groups}, layout.bytes,
      small ? cast_combination<kSplit, kFast> : cast_combination<kSplit, RowAccess::any>, params);
}

template <bool kSplit>
Status launch_cast(Session& session, CastParams& params) {
  const int64_t tiles = token_tiles(params.tokens);
  constexpr RowAccess kFast = kSplit ? RowAccess::vectors : RowAccess::copies;
  const bool fast_keys = access_of(params.key, params.dim) == kFast;
  if (params.selection != Selection::given) {
    const bool fast = fast_keys && access_of(params.query, params.dim) == kFast &&
                      access_of(params.surrogates, params.dim) == RowAccess::vectors;
    const int groups = affinity_groups<kSplit>(params.clusters, session.shared_bytes());
    const bool apart = fast && params.clusters <= kTile;
    const auto together =
        fast ? cast_affinity<kSplit, kFast, false> : cast_affinity<kSplit, RowAccess::any, false>;
    // grid: tiles of tokens x batch entries
    CA_RETURN_IF_ERROR(launch(session, params.batch * tiles,
                              {kTileThreads, apart ? kAffinitySides : groups},
                              affinity_layout<kSplit>(groups).bytes,
                              apart ? cast_affinity<kSplit, kFast, true> : together, params));
  }
  CA_RETURN_IF_ERROR(launch_selection(session, params));
  CA_RETURN_IF_ERROR(launch_clusters<kSplit>(session, params));
  return launch_combination<kSplit>(session, params);
}

}  // namespace

Status cast_attention(Session& session, const CastAttentionProblem& problem, const Call& call) {
  CastParams params = cast_params(session, problem, call);
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(allocate(scope, params));
  const bool rounds = call.precision == Precision::bfloat16;
  CA_RETURN_IF_ERROR(
      allocate_operands(scope, params, rounds ? Storage::bfloat16 : Storage::float32));
  CA_RETURN_IF_ERROR(session.tickets(params.batch, &params.tickets));
  return call.precision == Precision::float32 ? launch_cast<true>(session, params)
                                              : launch_cast<false>(session, params);
}

}  // namespace cluster_attention::cuda
