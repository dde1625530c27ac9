// What the backend promises when CUDA fails, on the model, which can be made to.

#include "test/cuda/model/faults.h"

#include "cuda/errors.h"
#include "cuda/launch.h"
#include "cuda/session.h"
#include "test/cuda/device.h"
#include "test/native/harness.h"

namespace cluster_attention::test {

namespace {

using namespace cluster_attention::cuda;

/// A whole machine before and after.
class Machine {
 public:
  Machine() { mend(); }
  ~Machine() { mend(); }
  static void mend() {
    cuda_model::reset_machine();
    forget_lost_devices();
  }
};

/// Opens a session, sends values there and back, and closes it.
Status exercise(bool* right) {
  const Backend& backend = Device::backend();
  *right = false;
  Session* session = nullptr;
  CA_RETURN_IF_ERROR(backend.open_session(0, &session));
  void* memory = nullptr;
  float values[3] = {1.0f, 2.0f, 3.0f};
  bool non_finite = false;
  Status status = backend.allocate(session, sizeof values, &memory);
  if (status.ok()) {
    status = backend.upload(session, memory, Storage::float32, values, 3, nullptr);
  }
  values[1] = 0.0f;
  if (status.ok()) {
    status = backend.download(session, values, memory, Storage::float32, 3, nullptr);
  }
  *right = values[1] == 2.0f;
  if (status.ok()) status = backend.finish(session, &non_finite);
  backend.release(session, memory);
  backend.close_session(session);
  return status;
}

TEST_ONCE("CUDA faults: no driver, no device") {
  const Machine machine;
  const Backend& backend = Device::backend();
  cuda_model::remove_driver();
  BackendInfo info;
  backend.describe(&info);
  CHECK_EQUAL(describe(info.status), "cuda_unavailable cudaErrorInsufficientDriver");
  CHECK_EQUAL(info.device_count, 0);
  CHECK_EQUAL(info.driver_version, 0);
  CHECK_EQUAL(std::string(info.reason),
              "CUDA driver version is insufficient for CUDA runtime version");
  Session* session = nullptr;
  CHECK_EQUAL(describe(backend.open_session(0, &session)),
              "cuda_unavailable cudaErrorInsufficientDriver");
  CHECK(session == nullptr);
  Machine::mend();
  cuda_model::remove_devices();
  backend.describe(&info);
  CHECK_EQUAL(describe(info.status), "cuda_unavailable cudaErrorNoDevice");
  CHECK(info.reason != nullptr);
}

TEST_ONCE("CUDA faults: any allocation may fail, and the next call is right") {
  const Machine machine;
  const int64_t before = cuda_model::live_objects();
  for (int64_t k = 1;; ++k) {
    const Scope scope("allocation " + std::to_string(k));
    bool right = false;
    cuda_model::fail_allocation(k);
    const Status status = exercise(&right);
    cuda_model::fail_allocation(0);
    CHECK_EQUAL(cuda_model::live_objects(), before);
    if (status.ok()) {
      CHECK(k > 4);
      break;
    }
    CHECK_EQUAL(describe(status), "out_of_memory");
    CHECK(exercise(&right).ok() && right);
  }
  check_model_faults();
}

TEST_ONCE("CUDA faults: out of memory frees what a session keeps") {
  const Machine machine;
  const Backend& backend = Device::backend();
  Device device;
  void* memory = nullptr;
  float value = 1.0f;
  const int64_t before = cuda_model::device_bytes_in_use();
  {
    DeviceWorkspace::Scope scope(device.session()->workspace());
    char* part = nullptr;
    CHECK(scope.allocate(&part, 10 << 20).ok());
  }
  CHECK(backend.allocate(device.session(), 4, &memory).ok());
  CHECK(backend.upload(device.session(), memory, Storage::float32, &value, 1, nullptr).ok());
  const int64_t objects = cuda_model::live_objects();
  void* more = &value;
  CHECK_EQUAL(describe(backend.allocate(device.session(), int64_t{1} << 40, &more)),
              "out_of_memory");
  CHECK(more == nullptr);
  CHECK_EQUAL(cuda_model::device_bytes_in_use(), before + 4);
  CHECK_EQUAL(cuda_model::live_objects(), objects - 5);  // one block; two halves, two events
  value = 0.0f;
  CHECK(backend.download(device.session(), &value, memory, Storage::float32, 1, nullptr).ok());
  CHECK_EQUAL(value, 1.0f);
  backend.release(device.session(), memory);
}

struct Nothing {};
void nothing(Nothing) {}

TEST_ONCE("CUDA faults: to ask for clusters frees nothing, even where memory is out") {
  const Machine machine;
  Device device(Storage::float32, cuda_model::index_of(cuda_model::kHopper));
  DeviceWorkspace::Scope scope(device.session()->workspace());
  char* part = nullptr;
  CHECK(scope.allocate(&part, 1 << 20).ok());
  const int64_t before = cuda_model::device_bytes_in_use();
  const DeviceScope current(device.session()->device());
  const LaunchShape shape{16, 32, 60 * 1024, 16};
  CHECK_EQUAL(count_resident_clusters(*device.session(), shape, nothing), 8);
  for (int64_t k = 1; k <= 3; ++k) {
    const Scope which("call " + std::to_string(k));
    cuda_model::fail_call(k, cudaErrorMemoryAllocation);
    CHECK_EQUAL(count_resident_clusters(*device.session(), shape, nothing), 0);
    CHECK_EQUAL(cuda_model::device_bytes_in_use(), before);
  }
}

TEST_ONCE("CUDA faults: a session knows which clusters its device runs") {
  const Machine machine;
  for (int count : {0, 1, 7}) {
    cuda_model::limit_resident_clusters(count);
    const Device device(Storage::float32, cuda_model::index_of(cuda_model::kHopper));
    const ClusterLimits& limits = device.session()->limits();
    CHECK_EQUAL(limits.resident_clusters(1), device.session()->multiprocessors());
    CHECK_EQUAL(limits.resident_clusters(8), 16);
    CHECK_EQUAL(limits.resident_clusters(16), count);
  }
}

TEST_ONCE("CUDA faults: any call may fail, what fails is named, nothing leaks") {
  const Machine machine;
  const int64_t before = cuda_model::live_objects();
  for (int64_t k = 1;; ++k) {
    const Scope scope("call " + std::to_string(k));
    bool right = false;
    cuda_model::fail_call(k, cudaErrorInvalidResourceHandle);
    const int64_t calls = cuda_model::calls();
    const Status status = exercise(&right);
    const bool reached = cuda_model::calls() - calls >= k;
    cuda_model::fail_call(0, cudaSuccess);
    CHECK_EQUAL(cuda_model::live_objects(), before);
    if (!reached) {
      CHECK(k > 15);
      break;
    }
    // Calls that give something back have nobody to tell.
    if (!status.ok()) {
      CHECK_EQUAL(describe(status), "cuda_unavailable cudaErrorInvalidResourceHandle");
    }
    CHECK(exercise(&right).ok() && right);
  }
  check_model_faults();
}

TEST_ONCE("CUDA faults: a broken device is lost for good, others are not") {
  const Machine machine;
  const Backend& backend = Device::backend();
  for (int64_t k = 1; k < 12; ++k) {
    const Scope scope("call " + std::to_string(k));
    bool right = false;
    cuda_model::fail_call(k, cudaErrorIllegalAddress);
    CHECK_EQUAL(describe(exercise(&right)), "device_lost cudaErrorIllegalAddress");
    CHECK_EQUAL(describe(exercise(&right)), "device_lost cudaErrorIllegalAddress");
    // Even if CUDA answered again.
    cuda_model::reset_machine();
    CHECK_EQUAL(describe(exercise(&right)), "device_lost cudaErrorIllegalAddress");
    DeviceInfo info;
    backend.describe_device(0, &info);
    CHECK_EQUAL(describe(info.status), "device_lost cudaErrorIllegalAddress");
    backend.describe_device(1, &info);
    CHECK_EQUAL(describe(info.status), "ok");
    Machine::mend();
  }
}

TEST_ONCE("CUDA faults: a device that breaks during a call ends all of its sessions") {
  const Machine machine;
  const Backend& backend = Device::backend();
  Session* sessions[3] = {};
  for (int i = 0; i < 3; ++i) CHECK(backend.open_session(i == 2 ? 1 : 0, &sessions[i]).ok());
  bool non_finite = false;
  cuda_model::fail_call(2, cudaErrorLaunchFailure);
  CHECK_EQUAL(describe(backend.finish(sessions[0], &non_finite)),
              "device_lost cudaErrorLaunchFailure");
  void* memory = nullptr;
  CHECK_EQUAL(describe(backend.allocate(sessions[1], 4, &memory)),
              "device_lost cudaErrorLaunchFailure");
  CHECK(backend.allocate(sessions[2], 4, &memory).ok());
  backend.release(sessions[2], memory);
  CHECK(backend.finish(sessions[2], &non_finite).ok());
  for (Session* session : sessions) backend.close_session(session);
}

}  // namespace

}  // namespace cluster_attention::test
