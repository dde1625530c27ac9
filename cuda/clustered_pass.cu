#include "cuda/clustered_pass.cuh"
#include "cuda/launch.h"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

constexpr int kMostWarps = 8;

template <int kWidth, bool kSplit>
Status start(Session& session, PassParams params, int64_t sequences) {
  // grid: (sequences * tiles of 16 warps clusters * stretches)
  using Tile = PassTile<kWidth, kSplit>;
  const auto bytes = [&](int64_t warps) {
    const int count = static_cast<int>(warps);
    const int64_t lists =
        params.partials.candidates != nullptr ? TopKeys<Tile>::bytes(params.top_k, count) : 0;
    return Tile::Sizes::layout(count).bytes + lists;
  };
  int64_t warps = divide_up(params.clusters, Tile::Sizes::kWarpRows);
  if (warps > kMostWarps) warps = kMostWarps;
  // Clusters do not depend on who shares their block: fewer warps give the same bits.
  while (warps > 1 && bytes(warps) > session.shared_bytes()) warps = divide_up(warps, 2);
  if (bytes(warps) > session.shared_bytes() &&
      Tile::Sizes::layout(1).bytes <= session.shared_bytes()) {
    return {StatusCode::unsupported, "topK", -1};
  }
  params.tiles = divide_up(params.clusters, Tile::Sizes::kWarpRows * warps);
  return launch(session, sequences * params.tiles * params.stretches, kWarp * warps, bytes(warps),
                pass_stretches<kWidth, kSplit>, params);
}

}  // namespace

int64_t pass_stretch(int64_t key_length) {
  constexpr int64_t kShortest = 512;
  constexpr int64_t kUsual = 1024;
  constexpr int64_t kMost = 64;
  if (key_length <= 8 * kUsual) return kShortest;
  return divide_up(key_length, kMost) > kUsual ? round_up(divide_up(key_length, kMost), 64)
                                               : kUsual;
}

Status clustered_pass(Session& session, DeviceWorkspace::Scope& scope,
                      const ClusteredAttentionProblem& problem, const Call& call,
                      const QueryGroups& groups, const KeysAndValues& operands,
                      ClusteredPass* pass) {
  // grids: (sequences * tiles * stretches); (sequences * clusters / 4 + queries / 128)
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  const int64_t rows = checked_size(sequences, problem.clusters);
  PassParams params = {};
  params.stretch = pass_stretch(shape.key_length);
  params.stretches = real_stretches(shape.key_length, params.stretch);
  CA_RETURN_IF_ERROR(scope.allocate(&pass->values, checked_size(rows, shape.value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.partials.states, checked_size(rows, params.stretches)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.partials.outputs,
                                    checked_size(rows, params.stretches, shape.value_dim)));
  if (problem.top_k > 0) {
    CA_RETURN_IF_ERROR(scope.allocate(&pass->bases, checked_size(rows, shape.value_dim)));
    CA_RETURN_IF_ERROR(scope.allocate(&pass->masses, rows));
    CA_RETURN_IF_ERROR(scope.allocate(&pass->top_keys, checked_size(rows, problem.top_k)));
    CA_RETURN_IF_ERROR(scope.allocate(&params.partials.candidates,
                                      checked_size(rows, params.stretches, problem.top_k)));
  }
  params.means = groups.means;
  params.offsets = groups.offsets;
  params.operands = operands;
  params.key_lengths = problem.inputs.key_lengths;
  params.heads = shape.heads;
  params.key_length = shape.key_length;
  params.clusters = problem.clusters;
  params.head_dim = static_cast<int32_t>(shape.head_dim);
  params.value_dim = static_cast<int32_t>(shape.value_dim);
  params.top_k = static_cast<int32_t>(problem.top_k);
  params.scale = problem.inputs.scale;
  params.flags = session.flags();
  CA_RETURN_IF_ERROR(with_width(shape.head_dim, shape.value_dim, [&](auto width) {
    return with_split(cut_in_two(call), [&](auto split) {
      return start<decltype(width)::value, decltype(split)::value>(session, params, sequences);
    });
  }));

  JoinParams join = {};
  join.partials = params.partials;
  join.value = operands.value;
  join.pass = *pass;
  join.offsets = groups.offsets;
  join.labels = groups.labels;
  join.out_labels = problem.labels;
  join.out_counts = problem.counts;
  join.out_indices = problem.top_k > 0 ? problem.indices : nullptr;
  join.out_values = problem.cluster_values;
  join.out_logsumexp = problem.cluster_logsumexp;
  join.output = stored_output(problem.output, call.storage == Storage::bfloat16);
  join.key_lengths = problem.inputs.key_lengths;
  join.heads = shape.heads;
  join.query_length = shape.query_length;
  join.key_length = shape.key_length;
  join.clusters = problem.clusters;
  join.sequences = sequences;
  join.stretches = params.stretches;
  join.stretch = params.stretch;
  join.join_blocks = divide_up(rows, kJoinWarps);
  join.value_dim = params.value_dim;
  join.top_k = params.top_k;
  join.scale = params.scale;
  join.flags = params.flags;
  const int64_t clear_blocks = divide_up(sequences * shape.query_length, kJoinWarps * kWarp);
  return launch(session, join.join_blocks + clear_blocks, kJoinWarps * kWarp,
                kJoinWarps * 2 * problem.top_k * static_cast<int64_t>(sizeof(Candidate)),
                join_stretches, join);
}

}  // namespace cluster_attention::cuda
