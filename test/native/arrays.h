#pragma once

// Owns the arrays behind the pointers of a problem. Outputs lie between fences, so that a write
// outside shows, and are poisoned before a run, so that an element left unwritten shows. With
// set_guard() all of them lie at guard pages instead.

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "test/native/data.h"
#include "test/native/guarded_memory.h"
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
    outputs_.emplace_back(bytes, fence());
    outputs_.back().poison();
    return reinterpret_cast<T*>(outputs_.back().data());
  }

  /// Overwrites every output with bytes that no kernel writes.
  void poison() {
    for (Memory& output : outputs_) output.poison();
  }
  /// A block of memory as it was allocated; an output's with its fences.
  struct Region {
    unsigned char* memory;
    size_t bytes;
  };
  /// The one that holds a pointer of a problem; null memory where it is not from here.
  Region region_of(const void* pointer) const {
    for (const std::deque<Memory>* blocks : {&inputs_, &outputs_}) {
      for (const Memory& block : *blocks) {
        if (block.holds(pointer)) return block.region();
      }
    }
    return {nullptr, 0};
  }
  std::vector<Region> output_regions() {
    std::vector<Region> regions;
    for (const Memory& output : outputs_) regions.push_back(output.region());
    return regions;
  }
  static constexpr size_t kFence = 64;

  /// The bytes of all outputs; fails the test if a fence was touched.
  std::vector<unsigned char> snapshot() const {
    std::vector<unsigned char> bytes;
    for (const Memory& output : outputs_) {
      output.check_fences();
      bytes.insert(bytes.end(), output.data(), output.data() + output.bytes());
    }
    return bytes;
  }

 private:
  /// As a float 3.4e38: a small one would pass for the 0 that should be there.
  static constexpr unsigned char kPoison = 0x7F;
  static size_t fence() { return guard() == Guard::none ? kFence : 0; }

  /// A block between two fences: on the heap, of the exact size, so that the address sanitizer sees
  /// every read past its end; or at a guard page.
  class Memory {
   public:
    Memory(size_t bytes, size_t fence) : bytes_(bytes), fence_(fence) {
      if (guard() == Guard::none) {
        heap_.resize(bytes + 2 * fence);
      } else {
        guarded_ = std::make_unique<GuardedMemory>(bytes, guard());
      }
    }
    unsigned char* data() { return guarded_ ? guarded_->data() : heap_.data() + fence_; }
    const unsigned char* data() const { return const_cast<Memory*>(this)->data(); }
    size_t bytes() const { return bytes_; }
    void poison() {
      if (bytes_ + fence_ > 0) std::memset(data() - fence_, kPoison, bytes_ + 2 * fence_);
    }
    Region region() const {
      return {const_cast<unsigned char*>(data()) - fence_, bytes_ + 2 * fence_};
    }
    bool holds(const void* pointer) const {
      const auto* at = static_cast<const unsigned char*>(pointer);
      return at >= region().memory && at < region().memory + region().bytes;
    }
    void check_fences() const {
      for (size_t i = 0; i < fence_; ++i) {
        CHECK_EQUAL(int{heap_[i]}, int{kPoison});
        CHECK_EQUAL(int{heap_[fence_ + bytes_ + i]}, int{kPoison});
      }
    }

   private:
    size_t bytes_;
    size_t fence_;
    std::vector<unsigned char> heap_;
    std::unique_ptr<GuardedMemory> guarded_;
  };

  void* keep(const void* data, size_t bytes) {
    inputs_.emplace_back(bytes, 0);
    if (bytes > 0) std::memcpy(inputs_.back().data(), data, bytes);
    return inputs_.back().data();
  }

  std::deque<Memory> inputs_;
  std::deque<Memory> outputs_;
};

template <typename T>
std::vector<T> read(const T* data, int64_t count) {
  return {data, data + count};
}

}  // namespace cluster_attention::test
