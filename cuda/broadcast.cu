#include "cuda/broadcast.cuh"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status broadcast(Session& session, const BroadcastProblem& problem, const Call& call) {
  // grid: a warp per row
  const BroadcastParams params{problem, session.flags()};
  const int64_t blocks = divide_up(problem.batch * problem.length, kBroadcastThreads / kWarp);
  return with_read(call, [&](auto read) {
    return launch(session, blocks, kBroadcastThreads, 0, broadcast_kernel<decltype(read)::value>,
                  params);
  });
}

}  // namespace cluster_attention::cuda
