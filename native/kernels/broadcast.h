#pragma once

// §2.4 Broadcast: each row takes its cluster's row. Its gradient is the sum of §2.4 Aggregate.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status broadcast(const BroadcastProblem& problem, Context& context);
Status broadcast_gradient(const BroadcastGradientProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
