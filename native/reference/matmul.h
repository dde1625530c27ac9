#pragma once

// Batched matrix products.

#include <vector>

#include "native/core/problem.h"

namespace cluster_attention::reference {

/// (batch,rows,columns); with `accumulate` what is added to the output.
std::vector<double> matmul(const MatmulProblem& problem);

}  // namespace cluster_attention::reference
