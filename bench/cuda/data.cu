#include "bench/cuda/data.h"

#include <algorithm>
#include <map>

#include "test/native/data.h"

extern "C" const cluster_attention::cuda::Backend* cluster_attention_cuda_backend(uint32_t version);

namespace cluster_attention::bench {

const cuda::Backend& backend() { return *cluster_attention_cuda_backend(cuda::kBackendVersion); }

std::vector<float> normal_floats(int64_t count, uint64_t seed) {
  constexpr int64_t kDrawn = 4194301;
  static std::map<uint64_t, std::vector<float>> drawn;
  std::vector<float>& numbers = drawn[seed];
  const int64_t wanted = std::min(count, kDrawn);
  if (static_cast<int64_t>(numbers.size()) < wanted) numbers = test::random_floats(wanted, seed);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(count));
  for (int64_t left = count; left > 0; left -= wanted) {
    values.insert(values.end(), numbers.begin(), numbers.begin() + std::min(left, wanted));
  }
  return values;
}

DeviceMemory::~DeviceMemory() {
  for (void* memory : memory_) backend().release(session_, memory);
}

void* DeviceMemory::allocate(int64_t bytes) {
  void* memory = nullptr;
  if (!backend().allocate(session_, bytes, &memory).ok()) {
    complete_ = false;
    return nullptr;
  }
  memory_.push_back(memory);
  return memory;
}

const float* DeviceMemory::floats(int64_t count, uint64_t seed, cuda::Storage storage) {
  void* memory = allocate(count * cuda::storage_bytes(storage));
  if (memory == nullptr) return nullptr;
  const std::vector<float> values = normal_floats(count, seed);
  complete_ =
      complete_ && backend().upload(session_, memory, storage, values.data(), count, nullptr).ok();
  return static_cast<const float*>(memory);
}

const int32_t* DeviceMemory::indices(int64_t count, int64_t below) {
  void* memory = allocate(count * static_cast<int64_t>(sizeof(int32_t)));
  if (memory == nullptr) return nullptr;
  std::vector<int32_t> values;
  // Multiples of the golden ratio, past their whole numbers.
  uint32_t fraction = 0;
  for (int64_t i = 0; i < count; ++i, fraction += 0x9e3779b9u) {
    values.push_back(static_cast<int32_t>(fraction * static_cast<uint64_t>(below) >> 32));
  }
  complete_ = complete_ && backend()
                               .upload_bytes(session_, memory, values.data(),
                                             count * static_cast<int64_t>(sizeof(int32_t)), nullptr)
                               .ok();
  return static_cast<const int32_t*>(memory);
}

AttentionInputs make_inputs(DeviceMemory& memory, int64_t queries, int64_t length, int64_t dim,
                            cuda::Storage storage) {
  return make_inputs(queries, length, dim, [&](int64_t count, uint64_t seed) {
    return memory.floats(count, seed, storage);
  });
}

}  // namespace cluster_attention::bench
