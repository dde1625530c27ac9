#include "cuda/launch.h"
#include "cuda/project.cuh"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Status launch_projection(Session& session, ProjectionParams params) {
  // grid: tiles of columns x groups x tiles of rows
  params.flags = session.flags();
  const int64_t blocks =
      divide_up(params.rows, kTile) * params.groups * divide_up(params.columns, kTile);
  return launch(session, blocks, kTileThreads, projection_layout().bytes, project_rows, params);
}

}  // namespace cluster_attention::cuda
