#include "test/cuda/model/cudart.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "test/cuda/model/faults.h"
#include "test/cuda/model/sanitizer.h"

namespace cuda_model {

struct Stream {
  int device;
};
struct Event {
  int device;
};
struct Pool {
  int device;
};

namespace {

constexpr int kResidentBlocks = 128;
constexpr size_t kFence = 256;
constexpr unsigned char kFenceByte = 0x5a;
constexpr size_t kDeviceBytes = size_t{1} << 30;

struct Capability {
  int major;
  int minor;
  int shared_bytes;  // of a block, at most
  int cluster;       // blocks of the largest
};
constexpr Capability kCapabilities[kDevices] = {
    {9, 0, 227 * 1024, 16}, {8, 0, 163 * 1024, 1}, {7, 5, 64 * 1024, 1}, {12, 0, 99 * 1024, 8}};

struct Block {
  void* base;
  size_t bytes;
  bool on_device;
};

struct Machine {
  std::mutex mutex;
  bool driver = true;
  int devices = kDevices;
  int first = 0;  // the device that changed places with device 0
  cudaError_t lost[kDevices] = {};
  int64_t allocation_to_fail = 0;
  int64_t call_to_fail = 0;
  cudaError_t error_to_return = cudaSuccess;
  int resident_clusters = kResidentBlocks;
  int64_t calls = 0;
  int64_t launches = 0;
  int64_t objects = 0;
  size_t device_bytes = 0;
  std::map<char*, Block> blocks;
  std::map<std::pair<int, const void*>, int> shared_limits;  // of a device and a kernel
};

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

void read_environment(Machine& machine) {
  const char* text = std::getenv("CLUSTER_ATTENTION_CUDA_MODEL");
  if (text == nullptr) return;
  const std::string fault = text;
  if (fault == "no-driver") machine.driver = false;
  if (fault == "no-device") machine.devices = 0;
  const auto number_after = [&](const char* mark) {
    return std::atoll(fault.c_str() + fault.find(mark) + 1);
  };
  if (fault.rfind("fail-allocation=", 0) == 0) machine.allocation_to_fail = number_after("=");
  if (fault.rfind("fail-call=", 0) == 0) {
    machine.call_to_fail = number_after("=");
    machine.error_to_return = static_cast<cudaError_t>(number_after(":"));
  }
  if (fault.rfind("first-device=", 0) == 0) {
    machine.first = static_cast<int>(number_after("=")) % kDevices;
  }
}

Machine& machine() {
  static Machine& the_machine = *[] {
    auto* made = new Machine;
    read_environment(*made);
    return made;
  }();
  return the_machine;
}

/// Of a device its kind, and the other way round.
int swap_first(int place) {
  const int first = machine().first;
  return place == 0 ? first : place == first ? 0 : place;
}

const Capability& capability_of(int device) { return kCapabilities[swap_first(device)]; }

/// Errors after which a context answers nothing any more.
bool breaks_context(cudaError_t error) {
  return (error >= cudaErrorIllegalAddress && error <= cudaErrorExternalDevice) ||
         error == cudaErrorECCUncorrectable || error == cudaErrorNvlinkUncorrectable ||
         error == cudaErrorContained;
}

cudaError_t give(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// Every call begins here, with the mutex held.
cudaError_t begin(Machine& now, int device) {
  ++now.calls;
  if (!now.driver) return cudaErrorInsufficientDriver;
  if (now.devices == 0) return cudaErrorNoDevice;
  if (now.lost[device] != cudaSuccess) return now.lost[device];
  if (now.call_to_fail > 0 && --now.call_to_fail == 0) {
    if (breaks_context(now.error_to_return)) now.lost[device] = now.error_to_return;
    return now.error_to_return;
  }
  return cudaSuccess;
}

template <typename Body>
cudaError_t call(int device, Body body) {
  Machine& now = machine();
  const std::lock_guard<std::mutex> lock(now.mutex);
  const cudaError_t error = begin(now, device);
  return give(error != cudaSuccess ? error : body(now));
}

/// Freeing gives everything back even where it reports the error of earlier work.
template <typename Body>
cudaError_t release(int device, Body body) {
  Machine& now = machine();
  const std::lock_guard<std::mutex> lock(now.mutex);
  const cudaError_t error = begin(now, device);
  const cudaError_t result = body(now);
  return give(error != cudaSuccess ? error : result);
}

cudaError_t allocate(Machine& now, void** memory, size_t bytes, bool on_device) {
  if (now.allocation_to_fail > 0 && --now.allocation_to_fail == 0) return cudaErrorMemoryAllocation;
  if (on_device && bytes > kDeviceBytes - now.device_bytes) return cudaErrorMemoryAllocation;
  const size_t whole = (bytes + 2 * kFence + 255) / 256 * 256;
  auto* base = static_cast<char*>(std::aligned_alloc(256, whole));
  if (base == nullptr) return cudaErrorMemoryAllocation;
  const Unwatched fresh;
  char* begin = base + kFence;
  std::fill_n(base, kFence, static_cast<char>(kFenceByte));
  std::fill_n(begin, bytes, static_cast<char>(fresh_byte()));
  std::fill(begin + bytes, base + whole, static_cast<char>(kFenceByte));
  forbid(base, kFence);
  forbid(begin + bytes, kFence);
  now.blocks[begin] = {base, bytes, on_device};
  ++now.objects;
  if (on_device) now.device_bytes += bytes;
  *memory = begin;
  return cudaSuccess;
}

cudaError_t free(Machine& now, void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const auto found = now.blocks.find(static_cast<char*>(memory));
  if (found == now.blocks.end()) {
    note_fault("memory is freed that was not allocated, or twice");
    return cudaErrorInvalidValue;
  }
  const Block block = found->second;
  const auto* base = static_cast<unsigned char*>(block.base);
  allow(base, kFence);
  allow(base + kFence + block.bytes, kFence);
  for (size_t i = 0; i < kFence; ++i) {
    if (base[i] == kFenceByte && base[kFence + block.bytes + i] == kFenceByte) continue;
    note_fault("an allocation of " + std::to_string(block.bytes) + " bytes was written outside");
    break;
  }
  if (block.on_device) now.device_bytes -= block.bytes;
  --now.objects;
  std::free(block.base);
  now.blocks.erase(found);
  return cudaSuccess;
}

template <typename T>
cudaError_t make(T** object) {
  return call(current_device, [&](Machine& now) {
    *object = new T{current_device};
    ++now.objects;
    return cudaSuccess;
  });
}

template <typename T>
cudaError_t destroy(T* object) {
  return release(object->device, [&](Machine& now) {
    delete object;
    --now.objects;
    return cudaSuccess;
  });
}

}  // namespace

void reset_machine() {
  Machine& now = machine();
  const std::lock_guard<std::mutex> lock(now.mutex);
  now.driver = true;
  now.devices = kDevices;
  std::fill_n(now.lost, kDevices, cudaSuccess);
  now.allocation_to_fail = 0;
  now.call_to_fail = 0;
  now.resident_clusters = kResidentBlocks;
  last_error = cudaSuccess;
}

void remove_driver() { machine().driver = false; }
void remove_devices() { machine().devices = 0; }
int index_of(DeviceKind kind) { return swap_first(kind); }
void fail_allocation(int64_t k) { machine().allocation_to_fail = k; }
void fail_call(int64_t k, cudaError_t error) {
  machine().call_to_fail = k;
  machine().error_to_return = error;
}
void limit_resident_clusters(int count) { machine().resident_clusters = count; }
int64_t calls() { return machine().calls; }
int64_t launches() { return machine().launches; }
int64_t live_objects() { return machine().objects; }
int64_t device_bytes_in_use() { return static_cast<int64_t>(machine().device_bytes); }

cudaError_t launch_kernel(const void* kernel, const Launch& launch, cudaStream_t stream) {
  const auto start = [&](Machine& now) {
    const size_t threads = static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z;
    const bool grid_fits = launch.grid.x > 0 && launch.grid.x <= 0x7fffffffu && launch.grid.y > 0 &&
                           launch.grid.y <= 65535 && launch.grid.z > 0 && launch.grid.z <= 65535;
    if (threads == 0 || threads > 1024 || launch.block.z > 64 || !grid_fits) {
      return cudaErrorInvalidConfiguration;
    }
    const auto limit = now.shared_limits.find({stream->device, kernel});
    const int allowed = limit == now.shared_limits.end() ? 48 * 1024 : limit->second;
    if (launch.shared_bytes > static_cast<size_t>(allowed)) return cudaErrorInvalidValue;
    if (current_device != stream->device) return cudaErrorInvalidResourceHandle;
    if (!launch.together &&
        launch.cluster > static_cast<unsigned>(capability_of(current_device).cluster)) {
      return cudaErrorInvalidConfiguration;
    }
    if (launch.together && launch.grid.x > kMultiprocessors * kBlocksOfAMultiprocessor) {
      return cudaErrorCooperativeLaunchTooLarge;
    }
    ++now.launches;
    return cudaSuccess;
  };
  const cudaError_t error = call(stream->device, start);
  if (error != cudaSuccess) return error;
  if (run_grid(launch)) return cudaSuccess;
  // As on a GPU, a kernel that went wrong is noticed later, by whoever waits.
  Machine& now = machine();
  const std::lock_guard<std::mutex> lock(now.mutex);
  now.lost[stream->device] = cudaErrorLaunchFailure;
  return cudaSuccess;
}

cudaError_t count_blocks(int* count) {
  return call(current_device, [&](Machine&) {
    *count = kBlocksOfAMultiprocessor;
    return cudaSuccess;
  });
}

cudaError_t count_clusters(int* count, int blocks) {
  return call(current_device, [&](Machine& now) {
    *count = kResidentBlocks / blocks;
    if (blocks > 8) *count = std::min(*count, now.resident_clusters);
    return blocks <= capability_of(current_device).cluster ? cudaSuccess : cudaErrorInvalidValue;
  });
}

}  // namespace cuda_model

using namespace cuda_model;

cudaError_t cudaGetDeviceCount(int* count) {
  return call(0, [&](Machine& now) {
    *count = now.devices;
    return cudaSuccess;
  });
}
cudaError_t cudaDriverGetVersion(int* version) {
  Machine& now = machine();
  const std::lock_guard<std::mutex> lock(now.mutex);
  *version = now.driver ? 13000 : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return give(cudaErrorInvalidDevice);
  current_device = device;
  return call(device, [](Machine&) { return cudaSuccess; });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return give(cudaErrorInvalidDevice);
  return call(device, [&](Machine&) {
    const Capability& capability = capability_of(device);
    *properties = {"Model of a GPU", kDeviceBytes, capability.major, capability.minor,
                   kMultiprocessors};
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDevices) return give(cudaErrorInvalidDevice);
  return call(device, [&](Machine&) {
    const Capability& capability = capability_of(device);
    const std::map<int, int> values = {
        {cudaDevAttrMultiProcessorCount, kMultiprocessors},
        {cudaDevAttrComputeCapabilityMajor, capability.major},
        {cudaDevAttrComputeCapabilityMinor, capability.minor},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, capability.shared_bytes}};
    const auto found = values.find(attribute);
    if (found == values.end()) return cudaErrorInvalidValue;
    *value = found->second;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return make(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return destroy(stream); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call(stream->device, [&](Machine&) {
    *status = cudaStreamCaptureStatusNone;  // there are no graphs
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call(stream->device, [](Machine&) { return cudaSuccess; });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call(event->device, [&](Machine&) {
    return stream->device == event->device ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call(event->device, [](Machine&) { return cudaSuccess; });
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  return call(properties->location.id, [&](Machine&) {
    static Pool pools[kDevices] = {{0}, {1}, {2}, {3}};  // they live as long as the process
    *pool = &pools[properties->location.id];
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void*) {
  return call(pool->device, [](Machine&) { return cudaSuccess; });
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  return release(pool->device, [](Machine&) { return cudaSuccess; });
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  return call(pool->device, [](Machine&) { return cudaSuccess; });
}
cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  return call(stream->device, [&](Machine& now) {
    if (pool->device != stream->device || bytes == 0) return cudaErrorInvalidValue;
    return allocate(now, memory, bytes, true);
  });
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  return release(stream->device, [&](Machine& now) { return cuda_model::free(now, memory); });
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return call(current_device, [&](Machine& now) { return allocate(now, memory, bytes, false); });
}
cudaError_t cudaFreeHost(void* memory) {
  return release(current_device, [&](Machine& now) { return cuda_model::free(now, memory); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return call(stream->device, [&](Machine&) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return call(stream->device, [&](Machine&) {
    std::memset(memory, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return call(current_device, [&](Machine& now) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value > capability_of(current_device).shared_bytes) return cudaErrorInvalidValue;
    int& limit = now.shared_limits[{current_device, kernel}];
    if (value < limit) {
      note_fault("the shared memory of a kernel was limited to less than another thread may want");
    }
    limit = value;
    return cudaSuccess;
  });
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

namespace {

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
};

const ErrorText* text_of(cudaError_t error) {
  for (const ErrorText& one : kErrors) {
    if (one.error == error) return &one;
  }
  return nullptr;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* known = text_of(error);
  return known != nullptr ? known->name : "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* known = text_of(error);
  return known != nullptr ? known->text : "unknown error";
}
