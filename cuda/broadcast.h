#pragma once

// §2.4 on the device; see broadcast.cuh for the kernel.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// One launch.
Status broadcast(Session& session, const BroadcastProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
