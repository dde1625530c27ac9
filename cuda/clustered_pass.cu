#include "cuda/clustered_pass.cuh"
#include "cuda/join_stretches.cuh"
#include "cuda/launch.h"
#include "cuda/widths.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

template <int kWidth, bool kSplit>
Status start(Session& session, PassParams params, int64_t sequences) {
  // grid: (sequences * tiles of 16 clusters for each of `warps` * stretches)
  using Sizes = typename PassTile<kWidth, kSplit>::Sizes;
  const int64_t row_tiles = divide_up(params.clusters, Sizes::kWarpRows);
  constexpr int kFeeders = kPassFed<kWidth> ? 1 : 0;
  int64_t warps = divide_up(row_tiles, divide_up(row_tiles, kPassWarps - kFeeders));
  // Clusters do not depend on who shares their block: fewer warps give the same bits.
  while (warps > 1 && bytes_of_block<Sizes>(session, warps) > session.shared_bytes()) {
    warps = divide_up(warps, 2);
  }
  params.tiles = divide_up(row_tiles, warps);
  return launch(session, sequences * params.tiles * params.stretches, kWarp * (warps + kFeeders),
                bytes_of_block<Sizes>(session, warps), pass_stretches<kWidth, kSplit>, params);
}

template <int kWidth, bool kSplit>
Status join(Session& session, const JoinParams& params) {
  // grid: (sequences * clusters + queries / kClearedQueries)
  const int64_t bytes = ClusterJoin<kWidth, kSplit>::layout(params.top_k).bytes;
  const int64_t without = ClusterJoin<kWidth, kSplit>::layout(0).bytes;
  if (bytes > session.shared_bytes() && without <= session.shared_bytes()) {
    return {StatusCode::unsupported, "topK", -1};
  }
  const int64_t clear_blocks = divide_up(params.sequences * params.query_length, kClearedQueries);
  return launch(session, params.sequences * params.clusters + clear_blocks, kChoiceThreads, bytes,
                join_stretches<kWidth, kSplit>, params);
}

/// Log2 of the keys of a group: the smallest ones leave the fewest keys to look at again.
int32_t group_shift(int64_t key_length) {
  if (key_length <= kMostFours << kFoursShift) return kFoursShift;
  if (key_length <= kMostGroups << kEightsShift) return kEightsShift;
  int32_t shift = 6;
  while (key_length > kMostGroups << shift) ++shift;
  return shift;
}

Status allocate(DeviceWorkspace::Scope& scope, const ClusteredAttentionProblem& problem,
                const Call& call, int64_t sequences, int64_t value_columns, PassParams& params,
                ClusteredPass* pass) {
  const int64_t rows = checked_size(sequences, problem.clusters);
  const int64_t value_dim = problem.inputs.shape.value_dim;
  CA_RETURN_IF_ERROR(scope.allocate(&pass->values, checked_size(rows, value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.partials.states, checked_size(rows, params.stretches)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.partials.outputs,
                                    checked_size(rows, params.stretches, value_columns)));
  if (problem.top_k == 0) {
    if (call.storage != Storage::bfloat16) return Status::success();
    return scope.allocate(&pass->rounded, checked_size(rows, value_dim));
  }
  CA_RETURN_IF_ERROR(scope.allocate(&pass->bases, checked_size(rows, value_dim)));
  CA_RETURN_IF_ERROR(scope.allocate(&pass->masses, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&pass->top_keys, checked_size(rows, problem.top_k)));
  return scope.allocate(&params.partials.maxima, checked_size(rows, params.group_pitch));
}

}  // namespace

int64_t pass_stretch(int64_t key_length) {
  constexpr int64_t kShortest = 128;
  constexpr int64_t kLongest = 1024;
  constexpr int64_t kUsual = 32;  // stretches
  const int64_t usual = round_up(divide_up(key_length, kUsual), 64);
  if (usual <= kLongest) return usual < kShortest ? kShortest : usual;
  // Whole groups, and whole blocks of keys.
  const int64_t unit = int64_t{1} << (group_shift(key_length) > 6 ? group_shift(key_length) : 6);
  const int64_t least = round_up(divide_up(key_length, kMostStretches), unit);
  return least < kLongest ? kLongest : least;
}

Status clustered_pass(Session& session, DeviceWorkspace::Scope& scope,
                      const ClusteredAttentionProblem& problem, const Call& call,
                      const QueryGroups& groups, const KeysAndValues& operands,
                      ClusteredPass* pass) {
  // grids: see start() and join()
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  PassParams params = {};
  params.stretch = pass_stretch(shape.key_length);
  params.stretches = real_stretches(shape.key_length, params.stretch);
  params.group_shift = group_shift(shape.key_length);
  params.group_pitch = round_up(divide_up(shape.key_length, int64_t{1} << params.group_shift), 16);
  CA_RETURN_IF_ERROR(
      allocate(scope, problem, call, sequences, operands.value.columns, params, pass));
  params.means = groups.means;
  params.offsets = groups.offsets;
  params.operands = operands;
  params.query_lengths = problem.inputs.query_lengths;
  params.key_lengths = problem.inputs.key_lengths;
  params.heads = shape.heads;
  params.key_length = shape.key_length;
  params.clusters = problem.clusters;
  params.head_dim = static_cast<int32_t>(shape.head_dim);
  params.scale = problem.inputs.scale;
  params.flags = session.flags();
  JoinParams joined = {};
  joined.partials = params.partials;
  joined.operands = operands;
  joined.pass = *pass;
  joined.means = groups.means;
  joined.offsets = groups.offsets;
  joined.labels = groups.labels;
  joined.out_labels = problem.labels;
  joined.out_counts = problem.counts;
  joined.out_indices = problem.top_k > 0 ? problem.indices : nullptr;
  joined.out_values = problem.cluster_values;
  joined.out_logsumexp = problem.cluster_logsumexp;
  joined.output = stored_output(problem.output, call.storage == Storage::bfloat16);
  joined.key_lengths = problem.inputs.key_lengths;
  joined.heads = shape.heads;
  joined.query_length = shape.query_length;
  joined.key_length = shape.key_length;
  joined.clusters = problem.clusters;
  joined.sequences = sequences;
  joined.stretches = params.stretches;
  joined.stretch = params.stretch;
  joined.group_shift = params.group_shift;
  joined.group_pitch = params.group_pitch;
  joined.head_dim = params.head_dim;
  joined.value_dim = static_cast<int32_t>(shape.value_dim);
  joined.top_k = static_cast<int32_t>(problem.top_k);
  joined.scale = params.scale;
  joined.flags = params.flags;
  return with_width(shape.head_dim, shape.value_dim, [&](auto width) {
    return with_split(cut_in_two(call), [&](auto split) {
      constexpr int kWidth = decltype(width)::value;
      constexpr bool kSplit = decltype(split)::value;
      CA_RETURN_IF_ERROR((start<kWidth, kSplit>(session, params, sequences)));
      return join<kWidth, kSplit>(session, joined);
    });
  });
}

}  // namespace cluster_attention::cuda
