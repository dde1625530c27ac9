#include "cuda/launch.h"
#include "cuda/member_sums.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status sum_members(Session& session, const MemberSumsProblem& problem, const Call& call) {
  // grid: a warp per cluster and 32 columns
  MemberSumsParams params{};
  params.problem = problem;
  params.slices = divide_up(problem.dim, kWarp);
  params.flags = session.flags();
  const int64_t warps = problem.sequences * problem.clusters * params.slices;
  if (warps == 0) return Status::success();
  return with_read(call, [&](auto read) {
    return launch(session, divide_up(warps, kMemberThreads / kWarp), kMemberThreads, 0,
                  member_sums_kernel<decltype(read)::value>, params);
  });
}

}  // namespace cluster_attention::cuda
