#pragma once

#include "bench/kernels/cases.h"

namespace cluster_attention::bench {

/// Names that make_centroid_gradient_case() knows, in the order of the table.
const std::vector<std::string>& centroid_gradient_names();

/// The backward of CAST (standard shape, kappa = 256), and forward and backward of pooling (eight
/// steps, M = 64, d = 64) and of the learned layer (one step, M = 64, d = 512 in 8 heads).
/// Gradients are checked by what the operation is invariant under.
Case make_centroid_gradient_case(const std::string& kernel, int64_t length);

}  // namespace cluster_attention::bench
