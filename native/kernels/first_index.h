#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "native/core/status.h"

namespace cluster_attention::kernels {

/// The lowest index that parallel tasks reported: which element an error names must not depend on
/// which task came first.
class FirstIndex {
 public:
  void report(int64_t index) {
    int64_t lowest = lowest_.load(std::memory_order_relaxed);
    while (index < lowest &&
           !lowest_.compare_exchange_weak(lowest, index, std::memory_order_relaxed)) {
    }
  }

  /// Out of range at the lowest index of `argument`, or success when nothing was reported.
  Status status(const char* argument) const {
    const int64_t lowest = lowest_.load(std::memory_order_relaxed);
    if (lowest == kNone) return Status::success();
    return {StatusCode::out_of_range, argument, lowest};
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> lowest_{kNone};
};

}  // namespace cluster_attention::kernels
