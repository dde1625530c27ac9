#pragma once

// Gradients of the sparse products on the device; see sparse_gradient.cuh for the kernel.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// Gradients are in the storage of what they belong to. The query's side is the other product's
/// forward; the key's side takes two launches to sort the slots by key and one to add (per cluster
/// two more to sort the queries).
Status sparse_dot_gradient(Session& session, const SparseDotGradientProblem& problem,
                           const Call& call);
Status sparse_weighted_sum_gradient(Session& session,
                                    const SparseWeightedSumGradientProblem& problem,
                                    const Call& call);

}  // namespace cluster_attention::cuda
