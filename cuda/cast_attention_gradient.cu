#include "cuda/assignment.h"
#include "cuda/cast_attention_gradient.h"
#include "cuda/cast_cluster_sums.cuh"
#include "cuda/cast_gather.cuh"
#include "cuda/cast_launch.h"
#include "cuda/cast_member_columns.cuh"
#include "cuda/cast_member_rows.cuh"
#include "cuda/cast_token_gradient.cuh"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

CastGradientParams gradient_params(Session& session, const CastAttentionGradientProblem& problem,
                                   const Call& call) {
  CastAttentionProblem given = problem.forward;
  given.selection = Selection::given;
  given.given_indices = problem.forward.indices;
  given.indices = nullptr;
  given.coverage = nullptr;
  CastGradientParams params;
  params.forward = cast_params(session, given, call);
  params.output_gradient = tensor_of(problem.output_gradient, call.storage);
  params.query = problem.gradients.query;
  params.key = problem.gradients.key;
  params.value = problem.gradients.value;
  params.surrogates = problem.surrogates;
  params.gate = problem.gate;
  params.sum_rows = assignment_sum_rows(params.forward.tokens, params.forward.clusters);
  return params;
}

/// What the forward's launch makes; -1 from checked_size() is refused by allocate().
Status allocate_forward(DeviceWorkspace::Scope& scope, CastParams& params) {
  const int64_t tokens = checked_size(params.batch, params.tokens);
  const int64_t lists = checked_size(params.batch, params.clusters);
  CA_RETURN_IF_ERROR(scope.allocate(&params.query_factor, tokens));
  CA_RETURN_IF_ERROR(scope.allocate(&params.key_factor, tokens));
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.slots, checked_size(params.batch, params.clusters, params.tokens)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.counts, lists));
  CA_RETURN_IF_ERROR(scope.allocate(&params.members, checked_size(lists, params.cluster_size)));
  return scope.allocate(&params.covered, params.batch);
}

/// Memory for `wanted` alone; nothing is written to the rest.
template <typename T>
Status allocate_wanted(DeviceWorkspace::Scope& scope, bool wanted, T** memory, int64_t count) {
  return wanted ? scope.allocate(memory, count) : Status::success();
}

Status allocate(DeviceWorkspace::Scope& scope, CastGradientParams& params) {
  const CastParams& forward = params.forward;
  const int64_t sequences = checked_size(forward.batch, forward.heads);
  const int64_t tokens = checked_size(sequences, forward.tokens);
  const int64_t lists = checked_size(sequences, forward.clusters);
  const int64_t slots = checked_size(lists, forward.cluster_size);
  const int64_t rows = checked_size(lists, forward.cluster_size + 1);
  const int64_t sums = checked_size(sequences, params.sum_rows);
  const int64_t dim = forward.dim;
  const int64_t value_dim = forward.value_dim;
  const bool weights = params.wants_weights();
  const bool softmax = forward.activation == Activation::softmax;
  const bool gate = params.gate != nullptr;
  const bool surrogates = params.surrogates != nullptr;
  CA_RETURN_IF_ERROR(allocate_forward(scope, params.forward));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, softmax, &params.token_maximum, tokens));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, softmax, &params.token_inverse, tokens));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, surrogates, &params.token_total, tokens));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, gate, &params.token_gate, tokens));
  CA_RETURN_IF_ERROR(scope.allocate(&params.slot_weight, slots));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, gate, &params.slot_gate, slots));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, params.query.data != nullptr, &params.slot_query,
                                     checked_size(slots, dim)));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, params.key.data != nullptr, &params.slot_key,
                                     checked_size(slots, dim)));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, params.value.data != nullptr, &params.slot_value,
                                     checked_size(slots, value_dim)));
  CA_RETURN_IF_ERROR(allocate_wanted(scope, weights, &params.summary_weight, slots));
  CA_RETURN_IF_ERROR(scope.allocate(&params.row_maximum, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.row_inverse, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.row_total, rows));
  CA_RETURN_IF_ERROR(
      allocate_wanted(scope, weights, &params.inter, checked_size(lists, value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.summary_sums, checked_size(sums, value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.summary_gradient, checked_size(lists, value_dim)));
  CA_RETURN_IF_ERROR(
      allocate_wanted(scope, surrogates, &params.surrogate_sums, checked_size(sums, dim)));
  return allocate_wanted(scope, weights, &params.surrogate_terms, checked_size(lists, dim));
}

/// How many tiles of its rows a block keeps; room for both sides of the largest layout.
template <bool kSplit>
void keep_tiles(const Session& session, CastGradientParams& params) {
  params.head_tiles = resident_tiles(session, params.forward.dim, [](int tiles) {
    return cast_token_layout<kSplit>(tiles, 1).bytes;
  });
  const int head_tiles = params.head_tiles;
  params.value_tiles = resident_tiles(session, params.forward.value_dim, [head_tiles](int tiles) {
    return cast_token_layout<kSplit>(head_tiles, tiles).bytes;
  });
}

template <typename Data, bool kSplit>
int64_t shared_bytes(const CastGradientParams& params) {
  return cast_gradient_layout<Data, kSplit>(params.head_tiles, params.value_tiles).bytes;
}

/// A_sum, the clusters and what they leave in their slots.
template <bool kSplit>
Status launch_clusters(Session& session, const CastGradientParams& params) {
  const CastParams& forward = params.forward;
  const int64_t sequences = forward.batch * forward.heads;
  if (forward.activation == Activation::softmax) {
    // grid: tiles of tokens x sequences
    CA_RETURN_IF_ERROR(launch(session, sequences * token_tiles(forward.tokens), kTileThreads,
                              cast_statistics_layout<kSplit>().bytes, cast_statistics<kSplit>,
                              params));
  }
  // grid: 128 value columns x parts of the tokens and tiles of clusters x sequences
  const int64_t blocks = sequences * assignment_blocks(forward.tokens, forward.clusters);
  CA_RETURN_IF_ERROR(launch(session, blocks * value_blocks_of(forward.value_dim), kTileThreads,
                            shared_bytes<CastClusterData, kSplit>(params),
                            cast_cluster_sums<kSplit, false>, params));
  // grid: 128 columns x tiles of a cluster's queries x clusters x sequences
  const int64_t column_blocks = params.wants_weights() ? value_blocks_of(forward.dim) : 1;
  const int64_t lists = sequences * forward.clusters;
  CA_RETURN_IF_ERROR(launch(session, lists * member_tiles(forward.cluster_size) * column_blocks,
                            kTileThreads, shared_bytes<CastMemberRowData, kSplit>(params),
                            cast_member_rows<kSplit>, params));
  if (params.key.data == nullptr && params.value.data == nullptr && params.gate == nullptr) {
    return Status::success();
  }
  // grid: 64 columns x tiles of a cluster's keys x clusters x sequences
  const int64_t tiles = lists * tiles_of(forward.cluster_size);
  return launch(session, tiles * member_column_blocks(forward), kTileThreads,
                shared_bytes<CastMemberColumnData, kSplit>(params), cast_member_columns<kSplit>,
                params);
}

template <bool kSplit>
Status launch_gradient(Session& session, CastGradientParams& params) {
  keep_tiles<kSplit>(session, params);
  const CastParams& forward = params.forward;
  const int64_t sequences = forward.batch * forward.heads;
  CA_RETURN_IF_ERROR(launch_given_members(session, forward));
  CA_RETURN_IF_ERROR(launch_clusters<kSplit>(session, params));
  if (params.wants_weights()) {
    // grid: 128 columns x tiles of tokens x sequences
    const int64_t column_blocks = params.query.data != nullptr ? value_blocks_of(forward.dim) : 1;
    CA_RETURN_IF_ERROR(
        launch(session, sequences * token_tiles(forward.tokens) * column_blocks, kTileThreads,
               cast_token_layout<kSplit>(params.head_tiles, params.value_tiles).bytes,
               cast_token_gradient<kSplit>, params));
  }
  if (params.surrogates != nullptr) {
    // grid: 128 columns x parts of the tokens and tiles of clusters x sequences
    const int64_t blocks = sequences * assignment_blocks(forward.tokens, forward.clusters);
    CA_RETURN_IF_ERROR(launch(session, blocks * value_blocks_of(forward.dim), kTileThreads,
                              shared_bytes<CastClusterData, kSplit>(params),
                              cast_cluster_sums<kSplit, true>, params));
  }
  // grid: see cast_gather_blocks()
  const CastGatherBlocks gather = cast_gather_blocks(params);
  return launch(session, gather.rows + gather.gates + gather.surrogates, kCastGatherThreads, 0,
                cast_gather<>, params);
}

}  // namespace

Status cast_attention_gradient(Session& session, const CastAttentionGradientProblem& problem,
                               const Call& call) {
  CastGradientParams params = gradient_params(session, problem, call);
  if (!params.wants_scores() && params.value.data == nullptr) return Status::success();
  const CastParams& forward = params.forward;
  DeviceWorkspace::Scope scope(session.workspace());
  CA_RETURN_IF_ERROR(allocate(scope, params));
  const int64_t tickets = checked_size(forward.batch, forward.heads, tiles_of(forward.clusters),
                                       value_blocks_of(forward.value_dim));
  if (tickets < 0) return Status::out_of_memory();
  CA_RETURN_IF_ERROR(session.tickets(tickets, &params.tickets));
  return call.precision == Precision::float32 ? launch_gradient<true>(session, params)
                                              : launch_gradient<false>(session, params);
}

}  // namespace cluster_attention::cuda
