#pragma once

// §4 clustered and §5 improved clustered attention on the GPU (Vyas, Katharopoulos, Fleuret, "Fast
// Transformers with Clustered Attention", NeurIPS 2020); see clustered_pass.cuh, spread.cuh and
// improve.cuh.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// Launches: the grouping's with its sort and its means (query_groups.h), at most one to convert
/// keys and values, two for the mean queries, one for the queries. D and E up to 256.
Status clustered_attention(Session& session, const ClusteredAttentionProblem& problem,
                           const Call& call);

}  // namespace cluster_attention::cuda
