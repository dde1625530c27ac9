#pragma once

// Matrix products on the device; see matmul.cuh for the kernel.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// a, b and output are in the call's storage. One launch.
Status matmul(Session& session, const MatmulProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
