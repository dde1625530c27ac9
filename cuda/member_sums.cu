#include <algorithm>

#include "cuda/launch.h"
#include "cuda/member_sums.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

template <Read kRead, int kColumns>
Status launch_sums(Session& session, MemberSumsParams params) {
  // grid: a block per cluster and 32 or 64 columns
  const MemberSumsProblem& problem = params.problem;
  params.slices = divide_up(problem.dim, kWarp * kColumns);
  const int64_t blocks = problem.sequences * problem.clusters * params.slices;
  // Clusters differ: warps for one many times as large as is usual. But more blocks hide more of
  // each other's latencies than warps that have a part only in large clusters.
  const int64_t usual = divide_up(problem.length, std::max<int64_t>(problem.clusters, 1));
  const int64_t most = blocks > 3 * session.multiprocessors() ? kMemberParts / 2 : kMemberParts;
  const int64_t warps = std::clamp<int64_t>(divide_up(usual, 4), 1, most);
  return launch(session, blocks, warps * kWarp,
                kSliceSums<kColumns> * static_cast<int64_t>(sizeof(double)),
                member_sums_kernel<kRead, kColumns>, params);
}

}  // namespace

Status sum_members(Session& session, const MemberSumsProblem& problem, const Call& call) {
  MemberSumsParams params{};
  params.problem = problem;
  params.flags = session.flags();
  if (problem.sequences * problem.clusters * problem.dim == 0) return Status::success();
  return with_read(call, [&](auto read) {
    constexpr Read kRead = decltype(read)::value;
    const bool pairs = problem.dim > kWarp && has_pairs<kRead>(problem.inputs, problem.dim);
    return pairs ? launch_sums<kRead, 2>(session, params) : launch_sums<kRead, 1>(session, params);
  });
}

}  // namespace cluster_attention::cuda
