#pragma once

// The launchers of centroid_start.cuh, for pooling and encoding. No kernels here.

#include "cuda/session.h"
#include "cuda/start_params.h"

namespace cluster_attention::cuda {

/// Scratch memory that launch_start() needs, into `params`. Before the first launch.
Status allocate_start(DeviceWorkspace::Scope& scope, StartParams& params);

/// Writes params.centroids and params.output: one launch, and one per 256 rows chosen by k-means++
/// and farthest points (one more for unit rows).
Status launch_start(Session& session, const StartParams& params);

/// Adds the gradient (batch,M,d) by u⁰ to that by the inputs (batch,N,d), both float32. `params` as
/// for launch_start(), which has run. One launch; none where the start was given.
Status launch_start_gradient(Session& session, const StartParams& params, const float* gradient,
                             float* inputs);

/// One launch.
Status launch_find_active(Session& session, const ActiveParams& params, int64_t batch);

}  // namespace cluster_attention::cuda
