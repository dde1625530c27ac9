#pragma once

// §2.4 on the device: the rows are sorted by label (counting_sort.h), and every cluster's owner
// adds its members (member_sums.cuh). Two launches, or three where the sort takes two.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

Status aggregate(Session& session, const AggregateProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
