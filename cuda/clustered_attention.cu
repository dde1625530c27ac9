#include "cuda/clustered_attention.cuh"
#include "cuda/clustered_attention.h"
#include "cuda/launch.h"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

constexpr int kMostWarps = 4;

template <int kWidth, bool kSplit>
Status improve_queries(Session& session, ImproveParams params, int64_t sequences) {
  // grid: (sequences * most tiles of members)
  using Sizes = TileSizes<kWidth, kSplit>;
  const auto bytes = [](int64_t warps) {
    return Sizes::layout(static_cast<int>(warps)).bytes + 48 * 4;
  };
  // Tiles about as large as clusters are on average; the bits do not depend on it.
  const int64_t members = divide_up(params.query_length, params.clusters);
  int64_t warps = divide_up(members, Sizes::kWarpRows);
  warps = warps < 1 ? 1 : warps > kMostWarps ? kMostWarps : warps;
  while (warps > 1 && bytes(warps) > session.shared_bytes()) warps /= 2;
  params.tiles = most_tiles(params.clusters, params.query_length, Sizes::kWarpRows * warps);
  return launch(session, sequences * params.tiles, kWarp * warps, bytes(warps),
                improve<kWidth, kSplit>, params);
}

Status spread_values(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
                     const QueryGroups& groups, const ClusteredPass& pass) {
  // grid: (queries / 32)
  const AttentionShape& shape = problem.inputs.shape;
  SpreadParams params = {};
  params.values = pass.values;
  params.labels = groups.labels;
  params.output = stored_output(problem.output, call.storage == Storage::bfloat16);
  params.heads = shape.heads;
  params.query_length = shape.query_length;
  params.clusters = problem.clusters;
  params.queries = shape.batch * shape.heads * shape.query_length;
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  return launch(session, divide_up(params.queries, kSpreadWarps * kSpreadQueries),
                kSpreadWarps * kWarp, 0, spread, params);
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
  QueryGroups groups;
  CA_RETURN_IF_ERROR(group_queries(session, problem, call, scope, groups));
  KeysAndValues operands;
  CA_RETURN_IF_ERROR(prepare_operands(session, scope, inputs, call, &operands));
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
  params.flags = session.flags();
  return with_width(shape.head_dim, shape.value_dim, [&](auto width) {
    return with_split(cut_in_two(call), [&](auto split) {
      return improve_queries<decltype(width)::value, decltype(split)::value>(session, params,
                                                                             sequences);
    });
  });
}

}  // namespace cluster_attention::cuda
