#include "cuda/centroid_start.cuh"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "cuda/start_rows.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status allocate_start(DeviceWorkspace::Scope& scope, StartParams& params) {
  if (!chooses_by_distance(params)) return Status::success();
  const int64_t rows = checked_size(params.batch, params.length);
  CA_RETURN_IF_ERROR(scope.allocate(&params.scales, params.unit_rows ? rows : 0));
  return allocate_start_rows(scope, params);
}

Status launch_start(Session& session, const StartParams& params) {
  if (chooses_by_distance(params) && params.unit_rows) {
    // grid: one thread per row
    CA_RETURN_IF_ERROR(launch(session, divide_up(params.batch * params.length, kStartThreads),
                              kStartThreads, 0, start_scales, params));
  }
  if (chooses_by_distance(params)) CA_RETURN_IF_ERROR(launch_start_rows(session, params));
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
