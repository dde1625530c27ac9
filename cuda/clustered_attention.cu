#include "cuda/clustered_attention.h"
#include "cuda/improve.cuh"
#include "cuda/launch.h"
#include "cuda/operands.cuh"
#include "cuda/spread.cuh"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

/// Members that a block takes one after the other: more share the keys that it fetches, fewer
/// leave more blocks.
constexpr int64_t kMostRounds = 4;

template <int kWidth, bool kSplit>
Status improve_queries(Session& session, ImproveParams params, int64_t sequences) {
  // grid: (sequences * most tiles of members)
  // Tiles about as large as clusters are on average; the bits do not depend on it.
  const int64_t members = params.query_length / params.clusters;
  const int64_t warps = members <= 2 * kTileRows ? 2 : kImproveWarps;
  int64_t rounds = members / (kTileRows * warps);
  rounds = rounds < 1 ? 1 : rounds > kMostRounds ? kMostRounds : rounds;
  params.tile_rows = static_cast<int32_t>(kTileRows * warps * rounds);
  params.tiles = most_tiles(params.clusters, params.query_length, params.tile_rows);
  return launch(session, sequences * params.tiles, kWarp * warps,
                ImproveTile<kWidth, kSplit>::layout(warps).bytes, improve<kWidth, kSplit>, params);
}

Status spread_values(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
                     const QueryGroups& groups, const ClusteredPass& pass) {
  // grid: (sequences * tiles of spread_queries() queries)
  const AttentionShape& shape = problem.inputs.shape;
  if (shape.query_length == 0 || shape.value_dim == 0) return Status::success();
  SpreadParams params = {};
  params.labels = groups.labels;
  params.output = stored_output(problem.output, call.storage == Storage::bfloat16);
  params.values.is_bfloat16 = params.output.is_bfloat16;
  params.values.data = params.values.is_bfloat16 ? static_cast<const void*>(pass.rounded)
                                                 : static_cast<const void*>(pass.values);
  params.values.row_stride = shape.value_dim;
  params.values.head_stride = problem.clusters * shape.value_dim;
  params.heads = shape.heads;
  params.query_length = shape.query_length;
  params.clusters = problem.clusters;
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  params.chunks = static_cast<int32_t>(divide_up(shape.value_dim, 8));
  params.tiles = divide_up(shape.query_length, spread_queries(params.chunks));
  params.vectors = params.output.aligned(16) && params.values.aligned(16);
  return launch(session, shape.batch * shape.heads * params.tiles, kSpreadThreads, 0, spread,
                params);
}

}  // namespace

Status clustered_attention(Session& session, const ClusteredAttentionProblem& problem,
                           const Call& call) {
  const AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  if (shape.head_dim > kMaximumWidth) return {StatusCode::unsupported, "headDim", -1};
  if (shape.value_dim > kMaximumWidth) return {StatusCode::unsupported, "valueDim", -1};
  if (sequences == 0) return Status::success();
  DeviceWorkspace::Scope scope(session.workspace());
  KeysAndValues operands;
  PackParams packing;
  CA_RETURN_IF_ERROR(plan_operands(session, scope, inputs, call, &operands, &packing));
  GroupExtras extras;
  extras.packing = &packing;
  QueryGroups groups;
  CA_RETURN_IF_ERROR(group_queries(session, problem, call, scope, groups, extras));
  ClusteredPass pass;
  CA_RETURN_IF_ERROR(clustered_pass(session, scope, problem, call, groups, operands, &pass));
  if (problem.top_k == 0) return spread_values(session, problem, call, groups, pass);
  ImproveParams params = {};
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  params.query = stored_rows(inputs.query, is_bfloat16);
  params.operands = operands;
  params.pass = pass;
  params.output = stored_output(problem.output, is_bfloat16);
  params.offsets = groups.offsets;
  params.order = groups.order;
  params.key_lengths = inputs.key_lengths;
  params.heads = shape.heads;
  params.query_length = shape.query_length;
  params.key_length = shape.key_length;
  params.clusters = problem.clusters;
  params.head_dim = static_cast<int32_t>(shape.head_dim);
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  params.top_k = static_cast<int32_t>(problem.top_k);
  params.scale = inputs.scale;
  params.query_vectors = params.query.aligned(16);
  params.output_vectors = params.output.aligned(16) && shape.value_dim % 4 == 0;
  params.flags = session.flags();
  return with_width(shape.head_dim, shape.value_dim, [&](auto width) {
    return with_split(cut_in_two(call), [&](auto split) {
      return improve_queries<decltype(width)::value, decltype(split)::value>(session, params,
                                                                             sequences);
    });
  });
}

}  // namespace cluster_attention::cuda
