#include "cuda/launch.h"
#include "cuda/matmul.cuh"

namespace cluster_attention::cuda {

Status matmul(Session& session, const MatmulProblem& problem, const Call& call) {
  // grid: a block per 128 x 64 outputs
  const MatmulParams params{problem, divide_up(problem.rows, kMatmulRows),
                            divide_up(problem.columns, kMatmulColumns), session.flags()};
  return with_read(call, [&](auto read) {
    return launch(session, problem.batch * params.row_tiles * params.column_tiles, kMatmulThreads,
                  sizeof(MatmulStorage), matmul_kernel<decltype(read)::value>, params);
  });
}

}  // namespace cluster_attention::cuda
