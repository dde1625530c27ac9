#pragma once

// What the forward and the backward of CAST (§7) share on the host. No kernels here.

#include "cuda/cast_params.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// Everything that the caller gave; scratch memory is still to come.
CastParams cast_params(Session& session, const CastAttentionProblem& problem, const Call& call);

/// Checks given indices and makes members, counts, slots and the factors of the gates. One launch.
Status launch_given_members(Session& session, const CastParams& params);

}  // namespace cluster_attention::cuda
