#pragma once

// §1 exact attention on the GPU; the kernel is in attention.cuh.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// One launch; one more where keys or values must be converted first, and where few queries share
/// many keys out (attention_stretches.cuh). D and E up to 256.
Status attention(Session& session, const AttentionProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
