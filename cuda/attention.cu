#include "cuda/attention.cuh"
#include "cuda/attention.h"
#include "cuda/launch.h"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

constexpr int kMostWarps = 4;

template <int kWidth, bool kSplit>
Status start(Session& session, AttentionParams params, int64_t sequences) {
  // grid: (sequences * tiles of 16 kRowTiles warps queries)
  using Sizes = TileSizes<kWidth, kSplit>;
  int64_t warps = divide_up(params.query_length, Sizes::kWarpRows);
  if (warps > kMostWarps) warps = kMostWarps;
  // Rows do not depend on who shares their block: fewer warps give the same bits.
  while (warps > 1 && Sizes::layout(static_cast<int>(warps)).bytes > session.shared_bytes()) {
    warps /= 2;
  }
  params.tiles = divide_up(params.query_length, Sizes::kWarpRows * warps);
  return launch(session, sequences * params.tiles, kWarp * warps,
                Sizes::layout(static_cast<int>(warps)).bytes, attend<kWidth, kSplit>, params);
}

}  // namespace

Status attention(Session& session, const AttentionProblem& problem, const Call& call) {
  const AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  if (sequences == 0 || shape.query_length == 0) return Status::success();
  const bool is_bfloat16 = call.storage == Storage::bfloat16;
  AttentionParams params = {};
  params.query = stored_rows(inputs.query, is_bfloat16);
  params.output = stored_output(problem.output, is_bfloat16);
  params.logsumexp = problem.logsumexp;
  params.query_lengths = inputs.query_lengths;
  params.key_lengths = inputs.key_lengths;
  params.heads = shape.heads;
  params.query_length = shape.query_length;
  params.key_length = shape.key_length;
  params.head_dim = static_cast<int32_t>(shape.head_dim);
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  params.scale = inputs.scale;
  params.causal = problem.causal;
  params.flags = session.flags();
  return with_width(shape.head_dim, shape.value_dim, [&](auto width) {
    DeviceWorkspace::Scope scope(session.workspace());
    CA_RETURN_IF_ERROR(prepare_operands(session, scope, inputs, call, &params.operands));
    return with_split(cut_in_two(call), [&](auto split) {
      return start<decltype(width)::value, decltype(split)::value>(session, params, sequences);
    });
  });
}

}  // namespace cluster_attention::cuda
