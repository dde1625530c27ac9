#pragma once

// Owns the arrays behind the pointers of a problem. Outputs lie between fences, so that a write
// outside shows, and are poisoned before a run, so that an element left unwritten shows.

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "test/native/data.h"
#include "test/native/harness.h"

namespace cluster_attention::test {

class Arrays {
 public:
  template <typename T>
  T* input(const std::vector<T>& values) {
    return reinterpret_cast<T*>(keep(values.data(), values.size() * sizeof(T)));
  }
  /// nullptr for an empty vector: an optional array that is absent.
  template <typename T>
  T* optional(const std::vector<T>& values) {
    return values.empty() ? nullptr : input(values);
  }
  float* floats(int64_t count, uint64_t seed, Fill fill = Fill::gaussian) {
    return input(random_floats(count, seed, fill));
  }

  template <typename T>
  T* output(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    outputs_.push_back({std::vector<unsigned char>(bytes + 2 * kFence, kPoison), bytes});
    return reinterpret_cast<T*>(outputs_.back().memory.data() + kFence);
  }

  /// Overwrites every output with bytes that no kernel writes.
  void poison() {
    for (Output& output : outputs_)
      std::memset(output.memory.data(), kPoison, output.memory.size());
  }
  /// A block of memory as it was allocated; an output's with its fences.
  struct Region {
    unsigned char* memory;
    size_t bytes;
  };
  /// The one that holds a pointer of a problem; null memory where it is not from here.
  Region region_of(const void* pointer) const {
    for (const auto& input : inputs_) {
      if (holds(input, pointer)) return {const_cast<unsigned char*>(input.data()), input.size()};
    }
    for (const Output& output : outputs_) {
      if (!holds(output.memory, pointer)) continue;
      return {const_cast<unsigned char*>(output.memory.data()), output.memory.size()};
    }
    return {nullptr, 0};
  }
  std::vector<Region> output_regions() {
    std::vector<Region> regions;
    for (Output& output : outputs_) regions.push_back({output.memory.data(), output.memory.size()});
    return regions;
  }
  static constexpr size_t kFence = 64;

  /// The bytes of all outputs; fails the test if a fence was touched.
  std::vector<unsigned char> snapshot() const {
    std::vector<unsigned char> bytes;
    for (const Output& output : outputs_) {
      const unsigned char* first = output.memory.data();
      for (size_t i = 0; i < kFence; ++i) {
        CHECK_EQUAL(int{first[i]}, int{kPoison});
        CHECK_EQUAL(int{first[kFence + output.bytes + i]}, int{kPoison});
      }
      bytes.insert(bytes.end(), first + kFence, first + kFence + output.bytes);
    }
    return bytes;
  }

 private:
  static constexpr unsigned char kPoison = 0xA5;
  struct Output {
    std::vector<unsigned char> memory;
    size_t bytes;
  };

  static bool holds(const std::vector<unsigned char>& memory, const void* pointer) {
    const auto* at = static_cast<const unsigned char*>(pointer);
    return at >= memory.data() && at < memory.data() + memory.size();
  }

  /// A heap block of its own and of the exact size, so that the address sanitizer sees every
  /// read past its end.
  void* keep(const void* data, size_t bytes) {
    inputs_.emplace_back(bytes);
    if (bytes > 0) std::memcpy(inputs_.back().data(), data, bytes);
    return inputs_.back().data();
  }

  std::deque<std::vector<unsigned char>> inputs_;
  std::deque<Output> outputs_;
};

template <typename T>
std::vector<T> read(const T* data, int64_t count) {
  return {data, data + count};
}

}  // namespace cluster_attention::test
