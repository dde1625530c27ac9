#pragma once

// §3 sparse products on the device; see sparse.cuh for the kernels.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// One launch; with labels two more to sort the queries by cluster.
Status sparse_dot(Session& session, const SparseDotProblem& problem, const Call& call);
Status sparse_weighted_sum(Session& session, const SparseWeightedSumProblem& problem,
                           const Call& call);

/// sparse_dot() with another value than -Inf where there is no key.
Status sparse_products(Session& session, const SparseDotProblem& problem, float none,
                       const Call& call);

}  // namespace cluster_attention::cuda
