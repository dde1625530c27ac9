#pragma once

#include <cstdint>

namespace cluster_attention::bench {

/// Multiply-adds that only touch registers, in GFLOP/s over `threads` threads: what the arithmetic
/// of this machine allows at this moment.
double measure_peak_gflops(int threads);

/// Sequential reads of memory far larger than the caches, in GB/s over `threads` threads.
double measure_read_gbps(int threads);

}  // namespace cluster_attention::bench
