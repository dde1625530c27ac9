#pragma once

// The memory behind the DeviceTensors of one environment. JavaScript knows it by a number, so that
// no mistake there, nor anything from outside, can become a pointer here. It lives until JavaScript
// has given it back and no call uses it any more, or until the environment goes away.

#include <atomic>
#include <cstdint>

#include "native/dispatch_device.h"

namespace cluster_attention {
namespace binding {

/// Memory of a device with the number of its owners: the table below, and calls in progress.
struct DeviceMemory {
  DeviceSessions* sessions = nullptr;
  int32_t device = 0;
  DeviceType type = DeviceType::float32;
  int64_t elements = 0;
  void* data = nullptr;
  std::atomic<int32_t> owners{1};

  int64_t bytes() const { return elements * device_type_bytes(type); }
  void keep() { owners.fetch_add(1, std::memory_order_relaxed); }
  /// The last owner frees it. Any thread.
  void let_go();
};

/// Numbers of an environment's device memory; JavaScript thread only.
class DeviceMemories {
 public:
  DeviceMemories() = default;
  ~DeviceMemories() { clear(); }
  DeviceMemories(const DeviceMemories&) = delete;
  DeviceMemories& operator=(const DeviceMemories&) = delete;

  /// Allocates; *number is never 0 and never given twice.
  Status add(DeviceSessions& sessions, int32_t device, DeviceType type, int64_t elements,
             int64_t* number);
  /// Null when the number is unknown or was removed.
  DeviceMemory* find(int64_t number) const;
  /// Ends JavaScript's ownership. Returns the bytes of it, 0 when the number is unknown.
  int64_t remove(int64_t number);
  void clear();

 private:
  struct Place {
    DeviceMemory* memory;
    int64_t number;
  };
  bool grow();

  Place* places_ = nullptr;
  int64_t capacity_ = 0;  // a power of two, or 0: place number & (capacity - 1)
  int64_t count_ = 0;
  int64_t last_number_ = 0;
};

/// The device memory that one call uses, kept alive until it is done.
class MemoryInUse {
 public:
  MemoryInUse() = default;
  ~MemoryInUse() {
    for (int i = 0; i < count_; ++i) memories_[i]->let_go();
  }
  MemoryInUse(const MemoryInUse&) = delete;
  MemoryInUse& operator=(const MemoryInUse&) = delete;

  /// False when there is no room for one more.
  bool add(DeviceMemory* memory) {
    if (count_ == ProblemArrays::kMaximum) return false;
    memory->keep();
    memories_[count_++] = memory;
    return true;
  }
  int count() const { return count_; }
  const DeviceMemory& operator[](int i) const { return *memories_[i]; }

 private:
  DeviceMemory* memories_[ProblemArrays::kMaximum] = {};
  int count_ = 0;
};

}  // namespace binding
}  // namespace cluster_attention
