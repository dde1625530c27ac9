#pragma once

// §6 the learned layer: T shared steps of u <- u + eps W_o concat_l(aggregate_i a_lji (W_v x_i)_l).

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

std::vector<double> centroid_encode(const CentroidEncodeProblem& problem);  // (batch,M,d)

}  // namespace cluster_attention::reference
