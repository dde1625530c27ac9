#pragma once

// §2.3 on the device; see kmeans.cuh for the kernels.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// Lloyd's K-means of rows. Launches: 2 to start (k-means++: one more per 256 rows that are drawn;
/// one more for the cosine), 3 per iteration, since only the end of a launch orders what many
/// blocks have done, 1 for the inertia. After the fixpoint the launches that are left return at
/// once.
Status kmeans(Session& session, const KMeansProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
