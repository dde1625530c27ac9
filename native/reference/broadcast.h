#pragma once

// §2.4 each row takes its cluster's row.

#include <vector>

#include "native/core/problem.h"

namespace cluster_attention::reference {

std::vector<double> broadcast(const BroadcastProblem& problem);  // (batch,length,dim)

}  // namespace cluster_attention::reference
