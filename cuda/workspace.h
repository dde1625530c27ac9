#pragma once

// Device memory of a session's operations: one block that only grows. Launches follow each other on
// one stream, so that a part may be used again by what is launched after its scope.
//
//   DeviceWorkspace::Scope scope(session.workspace());
//   float* sums = nullptr;
//   CA_RETURN_IF_ERROR(scope.allocate(&sums, clusters * dim));
//
// An operation allocates everything before its first launch. Scopes nest: an operation that calls
// another's launcher keeps what it has.

#include <cstdint>
#include <limits>

#include "cuda/primitives/platform.cuh"
#include "native/core/status.h"

namespace cluster_attention::cuda {

class Session;

class DeviceWorkspace {
 public:
  explicit DeviceWorkspace(Session& session) : session_(session) {}
  ~DeviceWorkspace() { free_all(); }
  DeviceWorkspace(const DeviceWorkspace&) = delete;
  DeviceWorkspace& operator=(const DeviceWorkspace&) = delete;

  class Scope {
   public:
    explicit Scope(DeviceWorkspace& workspace);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    /// Uninitialised, aligned to 256 bytes; a count of 0 gives a valid pointer.
    template <typename T>
    Status allocate(T** memory, int64_t count) {
      *memory = nullptr;
      constexpr int64_t kMaximum = std::numeric_limits<int64_t>::max() / 2;
      if (count < 0 || count > kMaximum / static_cast<int64_t>(sizeof(T))) {
        return Status::out_of_memory();
      }
      void* bytes = nullptr;
      const Status status =
          workspace_.allocate_bytes(count * static_cast<int64_t>(sizeof(T)), &bytes);
      *memory = static_cast<T*>(bytes);
      return status;
    }

   private:
    DeviceWorkspace& workspace_;
    int block_;
    int64_t used_;
  };

  /// Gives everything back once the work launched so far is done. Open scopes must not allocate
  /// or launch any more.
  void free_all();

  /// For tests: how short a block may be. With 1 byte every part is an allocation of its own, which
  /// may fail and behind which a write shows, until the outermost scope ends.
  void set_smallest_block(int64_t bytes) { smallest_block_ = bytes; }

 private:
  struct Block {
    char* memory = nullptr;
    int64_t bytes = 0;
  };
  static constexpr int kMaximumBlocks = 64;
  static constexpr int64_t kSmallestBlock = int64_t{1} << 20;

  Status allocate_bytes(int64_t bytes, void** memory);
  Status add_block(int64_t bytes);
  /// One block in the place of several, so that the next call finds its memory in one piece.
  void join_blocks();

  Session& session_;
  int64_t smallest_block_ = kSmallestBlock;
  Block blocks_[kMaximumBlocks];
  int block_count_ = 0;
  int depth_ = 0;  // open scopes
  int block_ = 0;  // where the next part comes from
  int64_t used_ = 0;
};

}  // namespace cluster_attention::cuda
