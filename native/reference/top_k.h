#pragma once

// §3 the k best columns of each row, best first.

#include <vector>

#include "native/core/problem.h"

namespace cluster_attention::reference {

struct TopKResult {
  std::vector<double> values;    // (rows,k), -Inf where a row has fewer than k columns
  std::vector<int32_t> indices;  // (rows,k), -1 likewise
};

TopKResult top_k(const TopKProblem& problem);

}  // namespace cluster_attention::reference
