#include <algorithm>

#include "cuda/launch.h"
#include "cuda/top_k.cuh"

namespace cluster_attention::cuda {

Status top_k(Session& session, const TopKProblem& problem, const Call& call) {
  // grid: a block per row
  if (problem.k == 0) return Status::success();
  TopKParams params{problem, 2, session.flags()};
  while (params.page < std::min(problem.k, kTopKPage)) params.page *= 2;
  return with_read(call, [&](auto read) {
    return launch(session, problem.rows, kTopKThreads, top_k_layout(params.page).bytes,
                  top_k_kernel<decltype(read)::value>, params);
  });
}

}  // namespace cluster_attention::cuda
