#pragma once

// The launchers of centroid_start.cuh, for pooling and encoding. No kernels here.

#include "cuda/session.h"
#include "cuda/start_params.h"

namespace cluster_attention::cuda {

/// Scratch memory that launch_start() needs, into `params`. Before the first launch.
Status allocate_start(Session& session, DeviceWorkspace::Scope& scope, StartParams& params);

/// Writes params.centroids and params.output: one launch, and one per centroid for k-means++ and
/// farthest points (one more for unit rows).
Status launch_start(Session& session, StartParams params);

/// One launch.
Status launch_find_active(Session& session, const ActiveParams& params, int64_t batch);

}  // namespace cluster_attention::cuda
