#pragma once

#include "bench/kernels/cases.h"

namespace cluster_attention::bench {

/// Names that make_gradient_case() knows, in the order of the table.
const std::vector<std::string>& gradient_names();

/// The backward of an attention whose forward has run once, at its standard shape; as operations
/// count its five products. "/both" is forward and backward.
Case make_gradient_case(const std::string& kernel, int64_t length);

}  // namespace cluster_attention::bench
