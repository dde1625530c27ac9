#pragma once

// A stream of one device with everything that operations need beside their arguments. One thread
// at a time uses it; release() alone may come from any thread.

#include <cstdint>

#include "cuda/backend.h"
#include "cuda/cluster_limits.h"
#include "cuda/primitives/flags.cuh"
#include "cuda/primitives/platform.cuh"
#include "cuda/staging.h"
#include "cuda/workspace.h"
#include "native/core/abort.h"

namespace cluster_attention::cuda {

class Session {
 public:
  static Status open(int32_t device, Session** session);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  int32_t device() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  DeviceWorkspace& workspace() { return workspace_; }
  Staging& staging() { return staging_; }
  /// What kernels report; in device memory.
  Flags* flags() const { return flags_; }
  int multiprocessors() const { return static_cast<int>(limits_.multiprocessors); }
  /// Whether kernels of sm_90a (wgmma) run on this device in this build.
  bool has_warpgroup_products() const { return has_warpgroup_products_; }
  /// Compute capability that this build's code for the device is made for: 90 is 9.0.
  int capability() const { return capability_; }
  /// Shared memory that a block may ask for.
  int64_t shared_bytes() const { return limits_.shared_bytes; }
  const ClusterLimits& limits() const { return limits_; }
  /// Others than the device's, by which calls are then planned: to be measured.
  void set_limits(const ClusterLimits& limits) { limits_ = limits; }

  /// Counters for last_block_done(), all 0 between launches.
  Status tickets(int64_t count, uint32_t** tickets);

  /// Before the launches of an operation: the flag that launch() polls.
  Status begin(const volatile int32_t* abort);
  bool cancelled() const { return is_raised(abort_); }

  Status allocate(int64_t bytes, void** memory);
  void release(void* memory);
  Status finish(bool* non_finite);
  /// Before a k-means, of which has_settled() is asked.
  Status forget_settled();
  /// Whether the k-means of that many sequences has settled, once all that was launched is done;
  /// false while a graph is captured.
  Status has_settled(int64_t sequences, bool* settled);

  /// Of every call to CUDA. Out of memory frees what this session keeps in reserve.
  Status check(cudaError_t error);

 private:
  explicit Session(int32_t device) : device_(device), workspace_(*this), staging_(*this) {}
  Status create();
  void count_clusters();
  Status reset_flags();

  const int32_t device_;
  cudaStream_t stream_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  Flags* flags_ = nullptr;
  Flags* read_flags_ = nullptr;  // pinned
  uint32_t* tickets_ = nullptr;
  int64_t ticket_count_ = 0;
  bool has_warpgroup_products_ = false;
  int capability_ = 0;
  ClusterLimits limits_;
  const volatile int32_t* abort_ = nullptr;
  DeviceWorkspace workspace_;
  Staging staging_;
};

}  // namespace cluster_attention::cuda
