#pragma once

// §7 CAST on the GPU (native/kernels/cast_attention.h says what is computed). Four launches:
// affinities (or the check of given indices), selection, attention within the clusters,
// combination; three with given indices.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status cast_attention(Session& session, const CastAttentionProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
