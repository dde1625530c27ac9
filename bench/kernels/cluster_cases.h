#pragma once

// Attention by clusters of queries, and of tokens.

#include "bench/kernels/cases.h"
#include "native/core/problem.h"
#include "native/core/settings.h"

namespace cluster_attention::bench {

/// Clustered attention, improved where top_k > 0.
Case clustered_case(int64_t length, int64_t top_k, Grouping grouping);

Case cast_case(int64_t length, Precision precision);

}  // namespace cluster_attention::bench
