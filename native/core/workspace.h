#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace cluster_attention {

/// Scratch memory of one call: 64-byte aligned blocks, all freed together. Every allocation may
/// fail; the kernel then returns Status::out_of_memory().
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Uninitialised memory for `count` elements, nullptr when it cannot be had. A count of 0 gives
  /// a valid pointer, so that nullptr always means failure.
  template <typename T>
  T* allocate(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > kMaximumBytes / sizeof(T)) return nullptr;
    return static_cast<T*>(allocate_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  /// The same, set to zero bytes.
  template <typename T>
  T* allocate_zeroed(int64_t count) {
    T* memory = allocate<T>(count);
    if (memory != nullptr) zero(memory, static_cast<size_t>(count) * sizeof(T));
    return memory;
  }

 private:
  struct Block;
  class Shelf;
  Block* obtain(size_t bytes);
  static constexpr size_t kMaximumBytes = std::numeric_limits<size_t>::max() / 4;
  void* allocate_bytes(size_t bytes);
  static void zero(void* memory, size_t bytes);

  Block* blocks_ = nullptr;
  // Short pieces are cut from one block: a call asks for dozens of them.
  char* slab_ = nullptr;
  size_t slab_bytes_ = 0;
};

/// For fault tests: the n-th allocation from now fails (1 is the next one), 0 lets all succeed.
void fail_workspace_allocation(int64_t n);
/// Bytes that live workspaces hold at this moment, in the whole process.
int64_t workspace_bytes_in_use();

}  // namespace cluster_attention
