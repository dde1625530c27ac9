#pragma once

// §3 sparse products on the device; see sparse.cuh for the kernels.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// One launch; with labels two more to sort the queries by cluster.
Status sparse_dot(Session& session, const SparseDotProblem& problem, const Call& call);
Status sparse_weighted_sum(Session& session, const SparseWeightedSumProblem& problem,
                           const Call& call);

/// How sparse_products() differs from sparse_dot().
struct SparseProductForm {
  float none;              // where there is no key
  bool output_in_storage;  // else fp32
};
Status sparse_products(Session& session, const SparseDotProblem& problem,
                       const SparseProductForm& form, const Call& call);

/// sparse_weighted_sum() of weights that are in the call's storage.
Status sparse_sums(Session& session, const SparseWeightedSumProblem& problem, bool stored_weights,
                   const Call& call);

}  // namespace cluster_attention::cuda
