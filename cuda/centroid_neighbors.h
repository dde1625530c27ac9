#pragma once

// §6 Centroid attention in which centroid j meets only the inputs that neighbors[j] lists.

#include "cuda/centroid_attention.h"

namespace cluster_attention::cuda {

Status centroid_neighbor_attention(Session& session, const CentroidAttentionProblem& problem,
                                   const CentroidOperands& operands);

}  // namespace cluster_attention::cuda
