#pragma once

// Gradients of aggregate and broadcast on the device. Every member takes its cluster's row of the
// output gradient, divided by the number of members for the mean; a broadcast row's cluster takes
// the sum of the gradients of its rows, added in index order.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// Gradients are in the storage of what they belong to. Three launches each.
Status aggregate_gradient(Session& session, const AggregateGradientProblem& problem,
                          const Call& call);
Status broadcast_gradient(Session& session, const BroadcastGradientProblem& problem,
                          const Call& call);

}  // namespace cluster_attention::cuda
