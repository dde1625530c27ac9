#pragma once

// §2.4 each row takes its cluster's row.

#include <vector>

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"

namespace cluster_attention::reference {

std::vector<double> broadcast(const BroadcastProblem& problem);  // (batch,length,dim)
/// dx_j = sum of g_i over the rows i of cluster j.
std::vector<double> broadcast_gradient(const BroadcastGradientProblem& problem);

}  // namespace cluster_attention::reference
