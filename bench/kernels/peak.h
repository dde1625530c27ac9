#pragma once

#include <cstdint>

namespace cluster_attention::bench {

/// Multiply-adds that only touch registers, in GFLOP/s over `threads` threads: what the arithmetic
/// of this machine allows at this moment.
double measure_peak_gflops(int threads);

}  // namespace cluster_attention::bench
