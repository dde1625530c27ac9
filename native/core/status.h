#pragma once

#include <cstdint>

namespace cluster_attention {

enum class StatusCode : int32_t {
  ok = 0,
  out_of_memory,     // a workspace could not be allocated
  cancelled,         // the caller's abort flag was raised
  non_finite,        // NaN or Inf in a row that is read: `argument`, `index`
  overflow,          // finite inputs, but NaN or Inf in a result or on the way to it
  out_of_range,      // an index or label outside its range: `argument`, `index`
  duplicate,         // an entry listed twice where it may stand once: `argument`, `index`
  shape_mismatch,    // sizes that cannot be multiplied or do not fit: `argument`
  unsupported,       // a combination that no kernel implements: `argument`
  cuda_unavailable,  // this call cannot run on that GPU: `argument` is the CUDA error's name
  device_lost,       // nor can any later one: `argument` is the CUDA error's name
};

/// What a kernel returns. Kernels never throw; only the binding raises.
struct Status {
  StatusCode code = StatusCode::ok;
  /// The option of the public interface that is at fault, or what the code says; a string that
  /// lives as long as the process, never owned.
  const char* argument = nullptr;
  /// Flat index of the first offending element of that option, -1 if not applicable.
  int64_t index = -1;

  bool ok() const { return code == StatusCode::ok; }
  /// Whether the arguments are at fault, which a kernel finds out before it writes any result.
  bool refuses_arguments() const {
    return code == StatusCode::out_of_range || code == StatusCode::duplicate ||
           code == StatusCode::shape_mismatch || code == StatusCode::unsupported;
  }
  static Status success() { return {}; }
  static Status out_of_memory() { return {StatusCode::out_of_memory, nullptr, -1}; }
  static Status cancelled() { return {StatusCode::cancelled, nullptr, -1}; }
};

}  // namespace cluster_attention

/// Leaves the calling function with the status of `expression` unless it is ok.
#define CA_RETURN_IF_ERROR(expression)                           \
  do {                                                           \
    const ::cluster_attention::Status ca_status_ = (expression); \
    if (!ca_status_.ok()) return ca_status_;                     \
  } while (0)
