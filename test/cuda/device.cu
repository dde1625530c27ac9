#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/session.h"
#include "test/cuda/device.h"

#if defined(CA_CUDA_MODEL)
#include "test/cuda/model/faults.h"
#include "test/cuda/model/grid.h"
#endif

extern "C" const cluster_attention::cuda::Backend* cluster_attention_cuda_backend(uint32_t version);

namespace cluster_attention::test {

namespace {

bool parts_alone = false;
int32_t usual_device = 0;

}  // namespace

const cuda::Backend& Device::backend() {
  return *cluster_attention_cuda_backend(cuda::kBackendVersion);
}

Device::Device(cuda::Storage storage, int32_t index) : storage_(storage) {
  const Status opened = backend().open_session(index < 0 ? usual_device : index, &session_);
  if (!opened.ok()) {
    // A kernel that hung, or met a fault, takes the device from all tests after it.
    std::fprintf(stderr, "no device for the tests that are left: %s\n", describe(opened).c_str());
    std::exit(1);
  }
  if (parts_alone) session_->workspace().set_smallest_block(1);
}

Device::~Device() {
  for (const auto& [host, copy] : copies_) backend().release(session_, copy.memory);
  backend().close_session(session_);
  check_model_faults();
}

void* Device::find(const void* host, const Arrays& arrays, cuda::Storage storage) {
  if (host == nullptr) return nullptr;
  const Arrays::Region region = arrays.region_of(host);
  CHECK(region.memory != nullptr);
  Copy& copy = copies_[region.memory];
  const int64_t bytes = static_cast<int64_t>(region.bytes);
  const bool rounded = storage == cuda::Storage::bfloat16;
  if (copy.memory == nullptr) {
    copy.storage = storage;
    CHECK_EQUAL(describe(backend().allocate(session_, rounded ? bytes / 2 : bytes, &copy.memory)),
                "ok");
    if (rounded) {
      CHECK_EQUAL(describe(backend().upload(session_, copy.memory, storage,
                                            reinterpret_cast<const float*>(region.memory),
                                            bytes / 4, nullptr)),
                  "ok");
    } else {
      CHECK_EQUAL(
          describe(backend().upload_bytes(session_, copy.memory, region.memory, bytes, nullptr)),
          "ok");
    }
  }
  CHECK(copy.storage == storage);
  const int64_t offset = static_cast<const unsigned char*>(host) - region.memory;
  return static_cast<char*>(copy.memory) + (rounded ? offset / 2 : offset);
}

AttentionInputs Device::inputs(AttentionInputs inputs, const Arrays& arrays) {
  inputs.query = stored(inputs.query, arrays);
  inputs.key = stored(inputs.key, arrays);
  inputs.value = stored(inputs.value, arrays);
  inputs.query_lengths = at(inputs.query_lengths, arrays);
  inputs.key_lengths = at(inputs.key_lengths, arrays);
  return inputs;
}

AttentionGradients Device::gradients(AttentionGradients gradients, const Arrays& arrays) {
  gradients.query = stored(gradients.query, arrays);
  gradients.key = stored(gradients.key, arrays);
  gradients.value = stored(gradients.value, arrays);
  return gradients;
}

Status Device::finish(Status launched) {
  const Status finished = backend().finish(session_, &non_finite_);
  check_model_faults();
  return launched.ok() ? finished : launched;
}

void Device::fetch(Arrays& arrays) {
  for (const Arrays::Region& region : arrays.output_regions()) {
    const auto found = copies_.find(region.memory);
    if (found == copies_.end()) continue;
    const int64_t bytes = static_cast<int64_t>(region.bytes);
    if (found->second.storage == cuda::Storage::float32) {
      CHECK_EQUAL(describe(backend().download_bytes(session_, region.memory, found->second.memory,
                                                    bytes, nullptr)),
                  "ok");
      continue;
    }
    std::vector<float> values(region.bytes / 4);
    CHECK_EQUAL(describe(backend().download(session_, values.data(), found->second.memory,
                                            found->second.storage, bytes / 4, nullptr)),
                "ok");
    // The fences were rounded like everything else.
    const int64_t fence = static_cast<int64_t>(Arrays::kFence) / 4;
    auto* host = reinterpret_cast<float*>(region.memory);
    const float rounded = round_to_bfloat16(host[0]);
    for (int64_t i = 0; i < fence; ++i) {
      CHECK_EQUAL(values[static_cast<size_t>(i)], rounded);
      CHECK_EQUAL(values[values.size() - static_cast<size_t>(i) - 1], rounded);
    }
    std::copy(values.begin() + fence, values.end() - fence, host + fence);
  }
}

void check_model_faults() {
#if defined(CA_CUDA_MODEL)
  for (const std::string& fault : cuda_model::take_faults()) fail(__FILE__, __LINE__, fault);
#endif
}

void set_thread_order(uint64_t seed) {
#if defined(CA_CUDA_MODEL)
  cuda_model::set_thread_order(seed);
#else
  (void)seed;
#endif
}

std::string expected_status(const Device& device, const AttentionShape& shape,
                            Precision precision) {
  const bool wide =
      precision == Precision::float32 && std::max(shape.head_dim, shape.value_dim) > 128;
  return wide && device.session()->shared_bytes() <= 64 * 1024 ? "unsupported shape" : "ok";
}

void set_usual_device(int32_t index) { usual_device = index; }

void limit_resident_clusters(int count) {
#if defined(CA_CUDA_MODEL)
  cuda_model::limit_resident_clusters(count);
#else
  (void)count;
#endif
}

void set_parts_alone(bool alone) { parts_alone = alone; }

}  // namespace cluster_attention::test
