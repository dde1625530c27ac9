#include <cstring>
#include <mutex>
#include <new>

#include "cuda/errors.h"
#include "cuda/launch.h"
#include "cuda/session.h"
#include "cuda/targets.h"

namespace cluster_attention::cuda {

namespace {

/// One pool for each device of the process: what sessions free stays there for the next one. It
/// is our own, so that nobody else's memory in the device's default pool is affected.
cudaError_t find_pool(int32_t device, cudaMemPool_t* pool) {
  static std::mutex mutex;
  static cudaMemPool_t pools[kMaximumDevices] = {};
  if (device < 0 || device >= kMaximumDevices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  if (pools[device] == nullptr) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t made = nullptr;
    const cudaError_t error = cudaMemPoolCreate(&made, &properties);
    if (error != cudaSuccess) return error;
    unsigned long long kept = ~0ull;
    const cudaError_t set = cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &kept);
    if (set != cudaSuccess) {
      (void)cudaMemPoolDestroy(made);
      return set;
    }
    pools[device] = made;
  }
  *pool = pools[device];
  return cudaSuccess;
}

struct Nothing {};

template <typename = void>
__global__ void fill_multiprocessor(Nothing) {}

Status fault_status(unsigned long long fault) {
  if (fault == kNoFault) return Status::success();
  static constexpr const char* kNames[] = {"labels", "indices", "neighbors"};
  const auto code = static_cast<IndexFault>(fault & 0xff);
  const auto index = static_cast<int64_t>(fault >> 8 & 0xffffffffffffull);
  return {code == IndexFault::duplicate ? StatusCode::duplicate : StatusCode::out_of_range,
          kNames[fault >> 56 & 0xff], index};
}

}  // namespace

Status Session::open(int32_t device, Session** session) {
  *session = nullptr;
  CA_RETURN_IF_ERROR(device_status(device));
  int devices = 0;
  CA_RETURN_IF_ERROR(status_of(cudaGetDeviceCount(&devices), device));
  if (device < 0 || device >= devices) return status_of(cudaErrorInvalidDevice, device);
  const DeviceScope scope(device);
  CA_RETURN_IF_ERROR(status_of(scope.error(), device));
  auto* made = new (std::nothrow) Session(device);
  if (made == nullptr) return Status::out_of_memory();
  const Status status = made->create();
  if (status.ok()) {
    *session = made;
  } else {
    delete made;
  }
  return status;
}

Status Session::create() {
  int multiprocessors = 1;
  CA_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device_)));
  int major = 0;
  int minor = 0;
  CA_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_)));
  CA_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_)));
  capability_ = code_for(compiled_targets(), major, minor);
  has_warpgroup_products_ =
      major == 9 && minor == 0 && std::strstr(compiled_targets(), "90a") != nullptr;
  int shared = 0;
  CA_RETURN_IF_ERROR(
      check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_)));
  limits_.multiprocessors = multiprocessors;
  limits_.shared_bytes = shared;
  count_clusters();
  CA_RETURN_IF_ERROR(check(find_pool(device_, &pool_)));
  CA_RETURN_IF_ERROR(check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)));
  void* memory = nullptr;
  CA_RETURN_IF_ERROR(check(cudaHostAlloc(&memory, sizeof(Flags), cudaHostAllocDefault)));
  read_flags_ = static_cast<Flags*>(memory);
  CA_RETURN_IF_ERROR(allocate(sizeof(Flags), &memory));
  flags_ = static_cast<Flags*>(memory);
  return reset_flags();
}

/// By clusters of a kernel whose blocks take all the shared memory of a multiprocessor.
void Session::count_clusters() {
  limits_.resident[0] = limits_.multiprocessors;
  if (capability_ < 90) return;
  for (int64_t blocks = 2; blocks <= kMostClusterBlocks; ++blocks) {
    const LaunchShape shape{blocks, kWarp, limits_.shared_bytes, blocks};
    limits_.resident[blocks - 1] = count_resident_clusters(*this, shape, fill_multiprocessor<>);
  }
}

Session::~Session() {
  const DeviceScope scope(device_);
  if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
  workspace_.free_all();
  staging_.free_all();
  release(tickets_);
  release(flags_);
  if (read_flags_ != nullptr) (void)cudaFreeHost(read_flags_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  (void)cudaGetLastError();
}

Status Session::reset_flags() {
  return check(cudaMemsetAsync(flags_, 0xff, sizeof(Flags), stream_));
}

Status Session::begin(const volatile int32_t* abort) {
  abort_ = abort;
  return device_status(device_);
}

Status Session::tickets(int64_t count, uint32_t** tickets) {
  if (count > ticket_count_) {
    release(tickets_);
    tickets_ = nullptr;
    ticket_count_ = 0;
    void* memory = nullptr;
    CA_RETURN_IF_ERROR(allocate(count * 4, &memory));
    tickets_ = static_cast<uint32_t*>(memory);
    CA_RETURN_IF_ERROR(
        check(cudaMemsetAsync(tickets_, 0, static_cast<size_t>(count) * 4, stream_)));
    ticket_count_ = count;
  }
  *tickets = tickets_;
  return Status::success();
}

Status Session::allocate(int64_t bytes, void** memory) {
  *memory = nullptr;
  if (bytes < 0) return Status::out_of_memory();
  const size_t size = bytes > 0 ? static_cast<size_t>(bytes) : 1;
  const Status status = check(cudaMallocFromPoolAsync(memory, size, pool_, stream_));
  if (!status.ok()) *memory = nullptr;
  return status;
}

void Session::release(void* memory) {
  if (memory == nullptr) return;
  const DeviceScope scope(device_);
  if (cudaFreeAsync(memory, stream_) != cudaSuccess) (void)cudaGetLastError();
}

Status Session::check(cudaError_t error) {
  if (error == cudaSuccess) return Status::success();
  const Status status = status_of(error, device_);
  if (status.code == StatusCode::out_of_memory) {
    workspace_.free_all();
    staging_.free_all();
    // What was just freed goes back to the device once the stream has passed it.
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    if (pool_ != nullptr) (void)cudaMemPoolTrimTo(pool_, 0);
    (void)cudaGetLastError();
  }
  return status;
}

Status Session::forget_settled() {
  return check(cudaMemsetAsync(&flags_->settled, 0xff, sizeof flags_->settled, stream_));
}

Status Session::has_settled(int64_t sequences, bool* settled) {
  *settled = false;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CA_RETURN_IF_ERROR(check(cudaStreamIsCapturing(stream_, &capture)));
  if (capture != cudaStreamCaptureStatusNone) return Status::success();
  CA_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(read_flags_, flags_, sizeof(Flags), cudaMemcpyDeviceToHost, stream_)));
  CA_RETURN_IF_ERROR(check(cudaStreamSynchronize(stream_)));
  *settled = read_flags_->settled + 1 == static_cast<uint32_t>(sequences);
  return Status::success();
}

Status Session::finish(bool* non_finite) {
  *non_finite = false;
  CA_RETURN_IF_ERROR(device_status(device_));
  CA_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(read_flags_, flags_, sizeof(Flags), cudaMemcpyDeviceToHost, stream_)));
  CA_RETURN_IF_ERROR(reset_flags());
  CA_RETURN_IF_ERROR(check(cudaStreamSynchronize(stream_)));
  *non_finite = read_flags_->finite == 0;
  return fault_status(read_flags_->fault);
}

}  // namespace cluster_attention::cuda
