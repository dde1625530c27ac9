#include <algorithm>

#include "cuda/hash_bits.cuh"
#include "cuda/launch.h"

namespace cluster_attention::cuda {

namespace {

template <Read kRead>
Status launch_product(Session& session, const HashParams& hash) {
  // grid: warps that share the tiles of 16 or 32 rows
  const HashSequences& problem = hash.sequences;
  HashProductParams params{};
  params.hash = hash;
  params.tiles = std::max<int64_t>(divide_up(problem.length, kHashTileRows<kRead>), 1);
  params.tolerance = product_tolerance<kRead>(problem.dim, hash.round_planes);
  const int64_t tiles = problem.batch * problem.heads * params.tiles;
  // Each block reads the planes: one for each multiprocessor at most, of as many warps as have
  // work, and as many as it takes to read.
  constexpr int64_t kFewestWarps = 4;
  const int64_t resident = session.multiprocessors();
  const int64_t warps =
      std::clamp<int64_t>(divide_up(tiles, resident), kFewestWarps, kHashProductThreads / kWarp);
  const int64_t blocks = std::min(divide_up(tiles, warps), resident);
  return launch(session, blocks, warps * kWarp, hash_product_layout(problem.dim).bytes,
                has_vectors<kRead>(problem.inputs, problem.dim) ? hash_product_kernel<kRead, true>
                                                                : hash_product_kernel<kRead, false>,
                params);
}

template <Read kRead>
Status launch_hash(Session& session, const HashSequences& problem, const Call& call) {
  // grid: 128 rows of a sequence per block; thresholds: one block per sequence and bit
  const int64_t sequences = problem.batch * problem.heads;
  DeviceWorkspace::Scope scope(session.workspace());
  HashParams params{};
  params.sequences = problem;
  params.tiles = std::max<int64_t>(divide_up(problem.length, kFmaRows), 1);
  params.round_planes = call.precision == Precision::bfloat16;
  params.flags = session.flags();
  const int64_t blocks = sequences * params.tiles;
  if (problem.threshold == Threshold::data) {
    float* thresholds = nullptr;
    CA_RETURN_IF_ERROR(scope.allocate(&thresholds, checked_size(sequences, kHashBits)));
    CA_RETURN_IF_ERROR(
        scope.allocate(&params.projections, checked_size(sequences, problem.bits, problem.length)));
    CA_RETURN_IF_ERROR(launch(session, blocks, kFmaThreads, sizeof(FmaTileStorage),
                              hash_kernel<kRead, true>, params));
    const HashThresholdParams selection{problem.heads, problem.length, problem.lengths,
                                        problem.bits,  problem.seed,   params.projections,
                                        thresholds};
    CA_RETURN_IF_ERROR(launch(session, sequences * problem.bits, kThresholdThreads,
                              threshold_layout().bytes, hash_threshold_kernel<>, selection));
    params.own_thresholds = thresholds;
  }
  if (problem.tensor_cores && params.own_thresholds == nullptr && session.capability() >= 80 &&
      problem.dim <= kMostProductColumns &&
      hash_product_layout(problem.dim).bytes <= session.shared_bytes()) {
    return launch_product<kRead>(session, params);
  }
  return launch(session, blocks, kFmaThreads, sizeof(FmaTileStorage), hash_kernel<kRead, false>,
                params);
}

}  // namespace

Status hash_sequences(Session& session, const HashSequences& problem, const Call& call) {
  if (problem.batch * problem.heads == 0) return Status::success();
  return with_read(
      call, [&](auto read) { return launch_hash<decltype(read)::value>(session, problem, call); });
}

Status hash(Session& session, const HashProblem& problem, const Call& call) {
  HashSequences sequences;
  sequences.inputs = dense_rows(problem.inputs, problem.rows, problem.dim);
  sequences.batch = 1;
  sequences.heads = 1;
  sequences.length = problem.rows;
  sequences.dim = problem.dim;
  sequences.planes = problem.planes;
  sequences.bits = problem.bits;
  sequences.hashes = problem.hashes;
  return hash_sequences(session, sequences, call);
}

}  // namespace cluster_attention::cuda
