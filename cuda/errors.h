#pragma once

// From CUDA's error codes to Status, and which devices of this process are lost.

#include <cstdint>

#include "cuda/primitives/platform.cuh"
#include "native/core/status.h"

namespace cluster_attention::cuda {

/// Whether every later call on the same device will fail too, until the process ends.
bool breaks_context(cudaError_t error);

/// ok, or device_lost with the name of the error that broke it.
Status device_status(int32_t device);

/// The status of a call on a device; what breaks the device is remembered for good. Also takes the
/// error out of the thread's last error, so that nobody else finds it there.
Status status_of(cudaError_t error, int32_t device);

/// Forgets lost devices: for tests, whose devices come back.
void forget_lost_devices();

/// Makes a device current for its lifetime and puts back the one before.
class DeviceScope {
 public:
  explicit DeviceScope(int32_t device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace cluster_attention::cuda
