#pragma once

// §3 The k best of each row of scores, best first, in the order of core/order.h.
//
// Method: a running threshold lets through only scores that can still be among the k best; these
// are gathered and pruned to k when the buffer is full, and sorted at the end.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status top_k(const TopKProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
