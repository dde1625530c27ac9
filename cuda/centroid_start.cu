#include "cuda/centroid_start.cuh"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

bool chooses_rows(const StartParams& params) {
  return params.start == PoolStart::plus_plus || params.start == PoolStart::farthest;
}

}  // namespace

Status allocate_start(Session& session, DeviceWorkspace::Scope& scope, StartParams& params) {
  if (!chooses_rows(params)) return Status::success();
  const int64_t rows = checked_size(params.batch, params.length);
  const int64_t chunks = checked_size(params.batch, start_chunks(params.length));
  CA_RETURN_IF_ERROR(scope.allocate(&params.scales, params.unit_rows ? rows : 0));
  CA_RETURN_IF_ERROR(scope.allocate(&params.distances, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.taken, rows));
  CA_RETURN_IF_ERROR(scope.allocate(&params.chunk_sums, chunks));
  CA_RETURN_IF_ERROR(scope.allocate(&params.chunk_farthest, chunks));
  CA_RETURN_IF_ERROR(scope.allocate(&params.chosen, checked_size(params.batch, params.count)));
  return session.tickets(params.batch, &params.tickets);
}

Status launch_start(Session& session, const StartParams& params) {
  if (chooses_rows(params) && params.unit_rows) {
    // grid: one thread per row
    CA_RETURN_IF_ERROR(launch(session, divide_up(params.batch * params.length, kStartThreads),
                              kStartThreads, 0, start_scales, params));
  }
  if (chooses_rows(params)) {
    // grid: chunks of 1024 rows x batch entries, as many as run at once
    CA_RETURN_IF_ERROR(launch_draws(
        session, params.count, params.batch * start_chunks(params.length), kStartThreads,
        static_cast<int64_t>(sizeof(StartShared)), choose_start_rows, params));
  }
  // grid: one block per centroid
  return launch(session, params.batch * params.count, kStartThreads, 0, place_start, params);
}

Status launch_start_gradient(Session& session, const StartParams& params, const float* gradient,
                             float* inputs) {
  if (params.start == PoolStart::given) return Status::success();
  // grid: one block per centroid
  return launch(session, params.batch * params.count, kStartThreads, 0, add_start_gradient,
                StartGradientParams{params, gradient, inputs});
}

Status launch_find_active(Session& session, const ActiveParams& params, int64_t batch) {
  // grid: one block per batch entry
  return launch(session, batch, kStartThreads, kWarp * static_cast<int64_t>(sizeof(int32_t)),
                find_active, params);
}

}  // namespace cluster_attention::cuda
