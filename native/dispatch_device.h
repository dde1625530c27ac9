#pragma once

// Problem + device -> CUDA kernel: the twin of dispatch.h. Arrays of a problem may lie in plain
// memory or on the device already (DeviceTensors), in any mixture: what is plain is copied to the
// device for the call, plain results are copied back once the call has succeeded. The caller waits
// for the device, so an asynchronous call runs on a thread that is kept for waiting.

#include <cstdint>

#include "cuda/backend.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/core/settings.h"
#include "native/core/status.h"
#include "native/dispatch_arrays.h"
#include "native/dispatch_sessions.h"

namespace cluster_attention {

/// What the elements of a DeviceTensor are.
enum class DeviceType : int32_t { float32, bfloat16, int32, uint64, float64 };

int64_t device_type_bytes(DeviceType type);

/// Whether an array of floats follows the storage of its call (cuda::Call::storage).
bool follows_storage(const char* array);

/// The device side of a call.
struct DeviceCall {
  DeviceSessions* sessions = nullptr;
  int32_t device = 0;
  cuda::Storage storage = cuda::Storage::float32;
  const volatile int32_t* abort = nullptr;
  /// The pointers of the problem that are of the device; all others are of plain memory.
  const void* resident[ProblemArrays::kMaximum] = {};
  int residents = 0;

  bool holds(const void* data) const;
};

/// What makes sense on a device alone.
struct DeviceOnly {};

/// A copy between plain memory and the device.
struct Transfer : DeviceOnly {
  DeviceType type = DeviceType::float32;
  int64_t elements = 0;
  void* device = nullptr;
  void* host = nullptr;  // floats for bfloat16
};
struct UploadProblem : Transfer {};
struct DownloadProblem : Transfer {};

/// Nothing but the question whether the device can be used; starts CUDA.
struct ProbeProblem : DeviceOnly {};

#define CA_DEVICE_RUN(Problem) \
  Status run_on_device(const Problem& problem, const CallSettings& settings, const DeviceCall& call)
CA_DEVICE_RUN(AttentionProblem);
CA_DEVICE_RUN(HashProblem);
CA_DEVICE_RUN(HammingKMeansProblem);
CA_DEVICE_RUN(KMeansProblem);
CA_DEVICE_RUN(AggregateProblem);
CA_DEVICE_RUN(BroadcastProblem);
CA_DEVICE_RUN(TopKProblem);
CA_DEVICE_RUN(SparseDotProblem);
CA_DEVICE_RUN(SparseWeightedSumProblem);
CA_DEVICE_RUN(ClusteredAttentionProblem);
CA_DEVICE_RUN(CentroidAttentionProblem);
CA_DEVICE_RUN(CentroidPoolProblem);
CA_DEVICE_RUN(CentroidEncodeProblem);
CA_DEVICE_RUN(CastAttentionProblem);
CA_DEVICE_RUN(MatmulProblem);
CA_DEVICE_RUN(AttentionGradientProblem);
CA_DEVICE_RUN(AggregateGradientProblem);
CA_DEVICE_RUN(BroadcastGradientProblem);
CA_DEVICE_RUN(SparseDotGradientProblem);
CA_DEVICE_RUN(SparseWeightedSumGradientProblem);
CA_DEVICE_RUN(ClusteredAttentionGradientProblem);
CA_DEVICE_RUN(CentroidAttentionGradientProblem);
CA_DEVICE_RUN(CentroidPoolGradientProblem);
CA_DEVICE_RUN(CentroidEncodeGradientProblem);
CA_DEVICE_RUN(CastAttentionGradientProblem);
CA_DEVICE_RUN(UploadProblem);
CA_DEVICE_RUN(DownloadProblem);
CA_DEVICE_RUN(ProbeProblem);
#undef CA_DEVICE_RUN

/// unsupported, unless the device cannot be used anyway.
Status refuse_on_device(const DeviceCall& call);

/// Every other problem: the backend has no kernel for it.
template <typename Problem>
Status run_on_device(const Problem&, const CallSettings&, const DeviceCall& call) {
  return refuse_on_device(call);
}

}  // namespace cluster_attention
