#pragma once

// What the cases are computed on: their sizes, numbers from fixed seeds, and memory of the device.

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/backend.h"

namespace cluster_attention::bench {

/// What every case of the tables in docs/performance.md has: B = 1, H = 8, D = E = 64.
constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;
constexpr int64_t kClusters = 100;
constexpr int64_t kTopK = 32;
constexpr int64_t kBits = 63;

/// D = E of "attention_wide".
constexpr int64_t kWideDim = 128;

const cuda::Backend& backend();

/// Normal numbers, always the same of a seed. To draw hundreds of millions would take longer than all
/// measurements: a few millions are repeated, in steps that no length of rows divides.
std::vector<float> normal_floats(int64_t count, uint64_t seed);

/// Device memory of one case, freed with it. Floats come from a fixed seed.
class DeviceMemory {
 public:
  explicit DeviceMemory(cuda::Session* session) : session_(session) {}
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Uninitialised; null when it cannot be had.
  void* allocate(int64_t bytes);
  template <typename T>
  T* array(int64_t count) {
    return static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  /// Normally distributed, in the storage given.
  const float* floats(int64_t count, uint64_t seed, cuda::Storage storage);
  /// Of 0 .. below - 1, spread evenly.
  const int32_t* indices(int64_t count, int64_t below);
  /// Whether every allocation and upload so far has worked.
  bool complete() const { return complete_; }

 private:
  cuda::Session* session_;
  std::vector<void*> memory_;
  bool complete_ = true;
};

/// (1,H,queries,dim), (1,H,length,dim) twice; array(count, seed) makes what they hold.
template <typename Array>
AttentionInputs make_inputs(int64_t queries, int64_t length, int64_t dim, Array array) {
  const auto rows = [&](int64_t count, uint64_t seed) {
    return dense_rows(array(kHeads * count * dim, seed), Layout::bhld, kHeads, count, dim);
  };
  AttentionInputs inputs;
  inputs.shape = {1, kHeads, queries, length, dim, dim};
  inputs.query = rows(queries, 1);
  inputs.key = rows(length, 2);
  inputs.value = rows(length, 3);
  inputs.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return inputs;
}

/// The same on the device.
AttentionInputs make_inputs(DeviceMemory& memory, int64_t queries, int64_t length, int64_t dim,
                            cuda::Storage storage);

}  // namespace cluster_attention::bench
