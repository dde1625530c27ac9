#pragma once

#include "native/core/context.h"

namespace cluster_attention {

/// Multiply-adds that only touch registers, in GFLOP/s over the threads of the context: what the
/// arithmetic of this machine allows at this moment, with the instruction set in use.
double measure_peak_gflops(Context& context);

}  // namespace cluster_attention
