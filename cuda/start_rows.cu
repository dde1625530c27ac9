#include "cuda/launch.h"
#include "cuda/start_rows.cuh"
#include "cuda/start_rows.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

/// Buffers of a block: so many that two run on a multiprocessor, where that leaves them two.
int start_buffers(int64_t shared_bytes) {
  constexpr int64_t kReserved = 1024;  // by the device, for each block
  for (int64_t bytes : {(shared_bytes - kReserved) / 2, shared_bytes}) {
    for (int buffers = kMostStartBuffers; buffers > 1; --buffers) {
      if (start_layout(buffers).bytes <= bytes) return buffers;
    }
  }
  return 1;
}

}  // namespace

Status allocate_start_rows(DeviceWorkspace::Scope& scope, StartParams& params) {
  const int64_t chunks = checked_size(2, params.batch, start_chunks(params.length));
  const bool draws = params.start == PoolStart::plus_plus;
  CA_RETURN_IF_ERROR(
      scope.allocate(&params.distances, checked_size(2, params.batch, params.length)));
  CA_RETURN_IF_ERROR(scope.allocate(&params.chunk_sums, draws ? chunks : 0));
  CA_RETURN_IF_ERROR(scope.allocate(&params.chunk_farthest, draws ? 0 : chunks));
  return scope.allocate(&params.chosen, checked_size(params.batch, params.count));
}

Status launch_start_rows(Session& session, const StartParams& given) {
  // grid: chunks of 256 rows x sequences, shared out to as many blocks as run at once
  StartParams params = given;
  params.access = access_of(params.inputs, params.dim);
  params.buffers = start_buffers(session.shared_bytes());
  return launch_draws(session, params.count, params.batch * start_chunks(params.length),
                      kStartThreads, start_layout(params.buffers).bytes, choose_start_rows, params);
}

}  // namespace cluster_attention::cuda
