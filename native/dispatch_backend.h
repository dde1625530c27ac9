#pragma once

// Finds and opens the CUDA backend, a shared library of its own beside the addon. It is opened once
// per process, when a device is first asked for (or described), and never closed; whatever was
// wrong then stays the reason for the life of the process.

#include <cstdint>

#include "cuda/backend.h"
#include "native/core/status.h"

namespace cluster_attention {

/// The backend's file, beside the addon.
constexpr const char* kBackendFile = "cluster_attention_cuda.so";

/// For tests: the absolute path of another file to open in its place.
constexpr const char* kBackendPathVariable = "CLUSTER_ATTENTION_CUDA_BACKEND";

constexpr int kMaximumPath = 4096;

/// What came of opening the backend.
struct BackendLibrary {
  /// Null when there is none that fits.
  const cuda::Backend* backend = nullptr;
  /// Driver, targets and devices; empty without a backend.
  cuda::BackendInfo info;
  /// Why no device can be used: the file, its contents or the driver. Empty when one can.
  char reason[kMaximumPath + 256] = {};

  bool usable() const { return reason[0] == '\0'; }
  /// cuda_unavailable with the reason unless it is usable.
  Status status() const;
};

const BackendLibrary& backend_library();

/// Whether device `device` can be used: cuda_unavailable with the reason, or device_lost.
Status device_status(int32_t device);

}  // namespace cluster_attention
