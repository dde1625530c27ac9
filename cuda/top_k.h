#pragma once

// §3 top-k on the device; see top_k.cuh for the kernel.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// One launch.
Status top_k(Session& session, const TopKProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
