#pragma once

// §2.4 mean or sum of the member rows of each cluster.

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

std::vector<double> aggregate(const AggregateProblem& problem);  // (batch,heads,C,dim)
/// dx_i = g_j (divided by the number of members for the mean), j the cluster of i.
std::vector<double> aggregate_gradient(const AggregateGradientProblem& problem);

/// One sequence; label -1 takes part in nothing, an empty cluster is 0.
Matrix aggregate(const Matrix& inputs, const std::vector<int32_t>& labels, int64_t clusters,
                 Reduce reduce);
std::vector<int32_t> count_labels(const std::vector<int32_t>& labels, int64_t clusters);

}  // namespace cluster_attention::reference
