#include "cuda/attention.cuh"
#include "cuda/attention.h"
#include "cuda/attention_hopper.cuh"
#include "cuda/attention_stretches.cuh"
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
  while (warps > 1 && bytes_of_block<Sizes>(session, warps) > session.shared_bytes()) {
    warps /= 2;
  }
  params.tiles = divide_up(params.query_length, Sizes::kWarpRows * warps);
  return launch(session, sequences * params.tiles, kWarp * warps,
                bytes_of_block<Sizes>(session, warps), attend<kWidth, kSplit>, params);
}

/// Warpgroups of consumers: as many as keep the fewest rounds of blocks, each of which takes
/// somewhat longer with more of them. Rows do not depend on who shares their block.
int choose_consumers(int64_t sequences, int64_t queries, int most, bool split,
                     int64_t multiprocessors) {
  const int64_t kTimes[] = {0, 5, 7, split ? 10 : 8};  // measured on an H200
  int best = 1;
  int64_t least = 0;
  for (int consumers = 1; consumers <= most; ++consumers) {
    const int64_t blocks = sequences * divide_up(queries, kConsumerRows * consumers);
    const int64_t time = divide_up(blocks, multiprocessors) * kTimes[consumers];
    if (consumers == 1 || time <= least) {
      best = consumers;
      least = time;
    }
  }
  return best;
}

template <int kWidth, bool kSplit>
Status start_on_hopper(Session& session, AttentionParams params, int64_t sequences) {
  // grid: (sequences * tiles of 64 consumers queries)
  using Sizes = HopperSizes<kWidth, kSplit>;
  const int consumers = choose_consumers(sequences, params.query_length, Sizes::kMostConsumers,
                                         kSplit, session.multiprocessors());
  params.tiles = divide_up(params.query_length, kConsumerRows * consumers);
  return launch(session, sequences * params.tiles, kWarpgroup * (consumers + 1),
                Sizes::bytes(consumers), attend_on_hopper<kWidth, kSplit>, params);
}

template <int kWidth, bool kSplit>
int64_t stretch_warps(int64_t queries) {
  return divide_up(queries, StretchTile<kWidth, kSplit>::Sizes::kWarpRows);
}
template <int kWidth, bool kSplit>
int64_t stretch_bytes(const Session& session, int64_t queries) {
  return bytes_of_block<typename StretchTile<kWidth, kSplit>::Sizes>(
      session, stretch_warps<kWidth, kSplit>(queries));
}

/// Whether the keys are shared out: by the sizes of a sequence alone, so that its results do not
/// depend on the others.
template <int kWidth, bool kSplit>
bool shares_keys(const Session& session, const AttentionShape& shape) {
  return shape.query_length <= kFewQueries && shape.key_length >= kManyKeys &&
         shape.key_length >= kFewestStretches * kKeysPerQuery * shape.query_length &&
         stretch_bytes<kWidth, kSplit>(session, shape.query_length) <= session.shared_bytes();
}

template <int kWidth, bool kSplit>
Status start_stretches(Session& session, DeviceWorkspace::Scope& scope,
                       const AttentionParams& attention, int64_t sequences) {
  // grids: (sequences * stretches), (queries / kStretchJoinWarps)
  StretchParams params = {};
  params.attention = attention;
  params.sequences = sequences;
  params.stretch = query_stretch(attention.query_length, attention.key_length);
  params.stretches = divide_up(attention.key_length, params.stretch);
  const int64_t rows = checked_size(sequences, attention.query_length);
  CA_RETURN_IF_ERROR(scope.allocate(&params.states, checked_size(rows, params.stretches)));
  CA_RETURN_IF_ERROR(scope.allocate(
      &params.outputs, checked_size(rows, params.stretches, attention.operands.value.columns)));
  CA_RETURN_IF_ERROR(launch(session, sequences * params.stretches,
                            kWarp * stretch_warps<kWidth, kSplit>(attention.query_length),
                            stretch_bytes<kWidth, kSplit>(session, attention.query_length),
                            attend_stretch<kWidth, kSplit>, params));
  return launch(session, divide_up(rows, kStretchJoinWarps), kWarp * kStretchJoinWarps, 0,
                join_queries<kWidth>, params);
}

template <int kWidth, bool kSplit>
Status choose_kernel(Session& session, const AttentionParams& params, int64_t sequences) {
  if constexpr (kWidth <= 128) {
    if (session.has_warpgroup_products()) {
      constexpr int kPadded = kWidth <= 64 ? 64 : 128;
      return start_on_hopper<kPadded, kSplit>(session, params, sequences);
    }
  }
  return start<kWidth, kSplit>(session, params, sequences);
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
    CA_RETURN_IF_ERROR(make_operands(session, scope, inputs, call, &params.operands));
    return with_split(cut_in_two(call), [&](auto split) {
      constexpr int kWidth = decltype(width)::value;
      constexpr bool kSplit = decltype(split)::value;
      if (shares_keys<kWidth, kSplit>(session, shape)) {
        return start_stretches<kWidth, kSplit>(session, scope, params, sequences);
      }
      return choose_kernel<kWidth, kSplit>(session, params, sequences);
    });
  });
}

}  // namespace cluster_attention::cuda
