#pragma once

// §2.4 mean or sum of the member rows of each cluster.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

std::vector<double> aggregate(const AggregateProblem& problem);  // (batch,heads,C,dim)

/// One sequence; label -1 takes part in nothing, an empty cluster is 0.
Matrix aggregate(const Matrix& inputs, const std::vector<int32_t>& labels, int64_t clusters,
                 Reduce reduce);
std::vector<int32_t> count_labels(const std::vector<int32_t>& labels, int64_t clusters);

}  // namespace cluster_attention::reference
