// The promises of cuda/backend.h that need no failing device.

#include <cstring>

#include "cuda/launch.h"
#include "cuda/primitives/shared_memory.cuh"
#include "cuda/targets.h"
#include "test/cuda/device.h"
#include "test/native/compare.h"

namespace cluster_attention::test {

namespace {

using namespace cluster_attention::cuda;

TEST_ONCE("CUDA session: the backend knows its version and its devices") {
  const Backend& backend = Device::backend();
  CHECK_EQUAL(backend.version, kBackendVersion);
  BackendInfo info;
  backend.describe(&info);
  CHECK(info.status.ok());
  CHECK(info.device_count > 0);
  CHECK(info.reason == nullptr);
  CHECK(info.runtime_version >= 12000);
  DeviceInfo device;
  backend.describe_device(0, &device);
  CHECK_EQUAL(describe(device.status), "ok");
  CHECK(device.name[0] != '\0');
  CHECK(device.memory_bytes > 0 && device.multiprocessors > 0);
  CHECK(runs_on(info.targets, device.compute_major, device.compute_minor));
  backend.describe_device(63, &device);
  CHECK_EQUAL(describe(device.status), "cuda_unavailable cudaErrorInvalidDevice");
  Session* session = reinterpret_cast<Session*>(1);
  CHECK_EQUAL(describe(backend.open_session(63, &session)),
              "cuda_unavailable cudaErrorInvalidDevice");
  CHECK(session == nullptr);
}

TEST_ONCE("CUDA session: which devices a list of targets runs on") {
  CHECK(runs_on("75", 7, 5));
  CHECK(!runs_on("75", 8, 0));
  CHECK(!runs_on("80", 7, 5));
  CHECK(runs_on("75,80,86", 8, 9));
  CHECK(!runs_on("86", 8, 0));
  CHECK(runs_on("75,90a", 9, 0));
  CHECK(!runs_on("90a", 10, 0));
  CHECK(runs_on("100", 10, 3));
  CHECK_EQUAL(code_for("75,80,86,90a,120-ptx", 8, 9), 86);
  CHECK_EQUAL(code_for("75,90a,80-ptx", 9, 0), 90);
  CHECK_EQUAL(code_for("75,80-ptx", 9, 0), 80);
  CHECK_EQUAL(code_for("90a,86", 10, 0), 0);
  CHECK(!runs_on("100,120", 13, 0));
  CHECK(runs_on("100,120,120-ptx", 13, 0));
  CHECK(runs_on("75-ptx", 9, 0));
  CHECK(!runs_on("90-ptx", 8, 9));
  CHECK(!runs_on("", 9, 0));
  CHECK(!runs_on("all", 9, 0));
}

TEST_ONCE("CUDA session: floats go there and come back in either storage") {
  const Backend& backend = Device::backend();
  // Less than a half of the staging buffer, several halves, and a rest.
  for (int64_t count : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{5000003}}) {
    for (Storage storage : {Storage::float32, Storage::bfloat16}) {
      const Scope scope(std::to_string(count) + (storage == Storage::float32 ? "" : " bfloat16"));
      Device device(storage);
      std::vector<float> values = random_floats(count, 8);
      void* memory = nullptr;
      CHECK_EQUAL(
          describe(backend.allocate(device.session(), count * storage_bytes(storage), &memory)),
          "ok");
      CHECK(memory != nullptr && reinterpret_cast<uintptr_t>(memory) % 256 == 0);
      CHECK_EQUAL(describe(backend.upload(device.session(), memory, storage, values.data(), count,
                                          nullptr)),
                  "ok");
      std::vector<float> expected = values;
      if (storage == Storage::bfloat16) {
        for (float& value : expected) value = test::round_to_bfloat16(value);
      }
      std::fill(values.begin(), values.end(), 0.0f);  // upload has read them
      CHECK_EQUAL(describe(backend.download(device.session(), values.data(), memory, storage, count,
                                            nullptr)),
                  "ok");
      CHECK(values == expected);
      backend.release(device.session(), memory);
    }
  }
}

TEST_ONCE("CUDA session: bytes likewise, and a raised flag ends a transfer") {
  const Backend& backend = Device::backend();
  Device device;
  std::vector<unsigned char> bytes(9000001);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 7 / 5);
  const std::vector<unsigned char> expected = bytes;
  const int64_t size = static_cast<int64_t>(bytes.size());
  void* memory = nullptr;
  CHECK(backend.allocate(device.session(), size, &memory).ok());
  CHECK(backend.upload_bytes(device.session(), memory, bytes.data(), size, nullptr).ok());
  std::fill(bytes.begin(), bytes.end(), 0);
  CHECK(backend.download_bytes(device.session(), bytes.data(), memory, size, nullptr).ok());
  CHECK(bytes == expected);
  const volatile int32_t abort = 1;
  CHECK_EQUAL(describe(backend.upload_bytes(device.session(), memory, bytes.data(), size, &abort)),
              "cancelled");
  CHECK_EQUAL(
      describe(backend.download_bytes(device.session(), bytes.data(), memory, size, &abort)),
      "cancelled");
  CHECK(backend.download_bytes(device.session(), bytes.data(), memory, size, nullptr).ok());
  CHECK(bytes == expected);
  backend.release(device.session(), memory);
}

struct FillParams {
  float* memory;
  int64_t count;
  float value;
};

__global__ void fill(const FillParams params) {
  // -> memory (count), each element by one thread
  float* chunk = dynamic_shared<float>();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  chunk[threadIdx.x] = params.value;
  if (i < params.count) params.memory[i] = chunk[threadIdx.x];
}

TEST_ONCE("CUDA session: the workspace grows, joins its blocks and nests") {
  Device device;
  DeviceWorkspace& workspace = device.session()->workspace();
  char* first = nullptr;
  char* second = nullptr;
  for (int round = 0; round < 3; ++round) {
    DeviceWorkspace::Scope scope(workspace);
    CHECK(scope.allocate(&first, 3 << 20).ok());
    {
      DeviceWorkspace::Scope inner(workspace);
      CHECK(inner.allocate(&second, 5 << 20).ok());
      CHECK(second >= first + (3 << 20) || second + (5 << 20) <= first);
    }
    char* third = nullptr;
    CHECK(scope.allocate(&third, 1000).ok());
    if (round > 0) CHECK_EQUAL(third, second);  // in one piece by now, and free again
    CHECK(reinterpret_cast<uintptr_t>(third) % 256 == 0);
    char* nothing = nullptr;
    CHECK(scope.allocate(&nothing, 0).ok());
    CHECK(nothing != nullptr);
    CHECK_EQUAL(describe(scope.allocate(&nothing, int64_t{1} << 62)), "out_of_memory");
    CHECK(nothing == nullptr);
  }
}

TEST_ONCE("CUDA session: launches") {
  Device device;
  Session& session = *device.session();
  void* memory = nullptr;
  CHECK(device.backend().allocate(&session, 4000, &memory).ok());
  FillParams params{static_cast<float*>(memory), 1000, 3.0f};
  // More shared memory than a kernel gets without being asked for it.
  CHECK_EQUAL(describe(launch(session, 8, 128, 64 * 1024, fill, params)), "ok");
  std::vector<float> values(1000);
  CHECK(device.backend()
            .download(&session, values.data(), memory, Storage::float32, 1000, nullptr)
            .ok());
  CHECK(values == std::vector<float>(1000, 3.0f));
  CHECK_EQUAL(describe(launch(session, {4, 0}, 128, 512, fill, params)), "ok");
  CHECK_EQUAL(describe(launch(session, {1, 65536}, 128, 512, fill, params)), "unsupported shape");
  CHECK_EQUAL(describe(launch(session, int64_t{1} << 31, 128, 512, fill, params)),
              "unsupported shape");
  CHECK_EQUAL(describe(launch(session, 1, 128, session.shared_bytes() + 16, fill, params)),
              "unsupported shape");
  volatile int32_t abort = 0;
  CHECK(session.begin(&abort).ok());
  CHECK_EQUAL(describe(launch(session, 8, 128, 512, fill, params)), "ok");
  abort = 1;
  CHECK_EQUAL(describe(launch(session, 8, 128, 512, fill, params)), "cancelled");
  CHECK(session.begin(nullptr).ok());
  bool non_finite = true;
  CHECK_EQUAL(describe(device.backend().finish(&session, &non_finite)), "ok");
  CHECK(!non_finite);
  device.backend().release(&session, memory);
}

}  // namespace

}  // namespace cluster_attention::test
