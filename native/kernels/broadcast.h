#pragma once

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status broadcast(const BroadcastProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
