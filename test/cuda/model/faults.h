#pragma once

// Makes the modelled machine fail, for tests. A program that only opens the library sets the
// environment variable CLUSTER_ATTENTION_CUDA_MODEL instead, before its first call, to one of
//   no-driver    no-device    fail-allocation=K    fail-call=K:CODE    first-device=K
// The last is for whole programs: the machine's first device and its K-th change places.

#include <cstdint>

#include "test/cuda/model/cudart.h"

namespace cuda_model {

/// A machine as at the start: four devices with a driver, no failure to come, none lost.
void reset_machine();
void remove_driver();
void remove_devices();
/// The k-th allocation from now on fails (device, pinned or pool), 1 is the next one; 0: none.
void fail_allocation(int64_t k);
/// The k-th call from now on that returns an error code returns this one. Errors that break a
/// context on a real machine are returned by every later call on that device too.
void fail_call(int64_t k, cudaError_t error);
/// Clusters of more than 8 blocks that a device runs at once; at first as many as 128 blocks make.
void limit_resident_clusters(int count);
/// Calls so far, and kernels launched among them.
int64_t calls();
int64_t launches();
/// Everything that was allocated (memory, streams, events) and not freed yet.
int64_t live_objects();
int64_t device_bytes_in_use();
/// The devices: of Hopper, of Ampere, of Turing, and of Blackwell for desktops, which has clusters
/// but little shared memory.
enum DeviceKind { kHopper, kAmpere, kTuring, kDesktop, kDevices };
/// The device of that kind: where it stands in this machine.
int index_of(DeviceKind kind);
constexpr int kMultiprocessors = 4;
constexpr int kBlocksOfAMultiprocessor = 2;

}  // namespace cuda_model
