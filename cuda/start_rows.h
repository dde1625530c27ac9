#pragma once

// The launchers of start_rows.cuh, for pooling, encoding and K-means. No kernels here.

#include "cuda/session.h"
#include "cuda/start_params.h"

namespace cluster_attention::cuda {

/// Scratch memory that launch_start_rows() needs, into `params`.
Status allocate_start_rows(DeviceWorkspace::Scope& scope, StartParams& params);

/// Writes params.chosen from row 1 on; row 0 is params.first_row(). One launch per 256 rows.
Status launch_start_rows(Session& session, const StartParams& params);

}  // namespace cluster_attention::cuda
