#include <atomic>

#include "cuda/backend.h"
#include "cuda/errors.h"

namespace cluster_attention::cuda {

namespace {

/// The name of the error that broke each device; null while it is well.
std::atomic<const char*> lost[kMaximumDevices];

}  // namespace

bool breaks_context(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

Status device_status(int32_t device) {
  if (device < 0 || device >= kMaximumDevices) return Status::success();
  const char* error = lost[device].load();
  if (error == nullptr) return Status::success();
  return {StatusCode::device_lost, error, -1};
}

Status status_of(cudaError_t error, int32_t device) {
  if (error == cudaSuccess) return Status::success();
  (void)cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) return Status::out_of_memory();
  const char* name = cudaGetErrorName(error);
  if (!breaks_context(error)) return {StatusCode::cuda_unavailable, name, -1};
  if (device >= 0 && device < kMaximumDevices) {
    const char* none = nullptr;
    lost[device].compare_exchange_strong(none, name);
  }
  return {StatusCode::device_lost, name, -1};
}

void forget_lost_devices() {
  for (std::atomic<const char*>& one : lost) one.store(nullptr);
}

DeviceScope::DeviceScope(int32_t device) {
  error_ = cudaGetDevice(&before_);
  if (error_ != cudaSuccess || before_ == device) return;
  error_ = cudaSetDevice(device);
  changed_ = true;
}

DeviceScope::~DeviceScope() {
  // The thread may not have used that device before: then this makes a context there, or fails.
  if (changed_ && cudaSetDevice(before_) != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace cluster_attention::cuda
