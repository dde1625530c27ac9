#pragma once

// §2.4 on the device: the rows are sorted by label (counting_sort.cuh), and every cluster's owner
// adds its members in index order (member_sums.cuh). Three launches.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

Status aggregate(Session& session, const AggregateProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
