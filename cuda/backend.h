#pragma once

// The contract between the addon and the CUDA backend, a shared library of its own that is opened
// when a GPU is first asked for. Plain C++ without CUDA types; both sides are built from one
// source tree, and the version guards against a file left over from another build.
//
//   const auto* backend = symbol("cluster_attention_cuda_backend")(kBackendVersion);
//   backend->open_session(device, &session);
//   backend->upload(session, query, Storage::float32, host, count); ...
//   backend->operations.attention(session, problem, call);   // returns before the GPU is done
//   backend->finish(session, &non_finite);                   // waits and tells what happened
//   backend->download(session, host, output, Storage::float32, count);
//
// A session is a stream, a workspace and a staging buffer of one device. One thread at a time uses
// it; release() alone may be called by any thread at any time. Sessions do not order their work
// among each other: what one writes, another may use after the first one's finish().
//
// Nothing throws, exits or prints. Failures are:
//   out_of_memory     the workspace and the staging buffer have been freed, the next call may work
//   cuda_unavailable  this call failed, the device answers still; `argument` is the error's name
//   device_lost       the device refuses all further work in this process; so does every later call
//   cancelled         the abort flag was raised; what was already launched may have written outputs

#include <cstdint>

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/core/settings.h"
#include "native/core/status.h"

namespace cluster_attention::cuda {

constexpr uint32_t kBackendVersion = 3;

/// Devices that are told apart; no machine has more.
constexpr int32_t kMaximumDevices = 64;

/// How an array of floats is stored on the device.
enum class Storage : int32_t { float32, bfloat16 };

inline int64_t storage_bytes(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

/// What is known without touching a device. Versions are as CUDA gives them: 13000 is 13.0.
struct BackendInfo {
  const char* targets = nullptr;  // compiled in, e.g. "75,80,90a"
  int32_t runtime_version = 0;    // of the CUDA runtime that is linked in
  int32_t driver_version = 0;     // newest CUDA version that the driver knows, 0 without a driver
  int32_t device_count = 0;       // 0 when `status` is not ok
  Status status;                  // cuda_unavailable: why there is no device at all
  const char* reason = nullptr;   // the driver's words for it, null when all is well
};

struct DeviceInfo {
  char name[256] = {};
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0;
  /// cuda_unavailable: no code for this device was compiled in; device_lost: it failed before.
  Status status;
};

class Session;

/// What an operation must know beside its problem. All pointers of the problem are of the device.
struct Call {
  /// Of query, key, value, inputs, scores, a, b, values and output, of the gradients of these and
  /// of output_gradient (not of an `initial`, of weights, planes, masses or anything else, nor of
  /// their gradients). Pointers to bfloat16 stand as pointers to float in the problem; strides
  /// count elements all the same.
  Storage storage = Storage::float32;
  Precision precision = Precision::float32;
  /// Polled before each launch; null when the call cannot be cancelled.
  const volatile int32_t* abort = nullptr;
};

/// Launches an operation and waits for nothing, but every 32 iterations of a k-means of several
/// launches, not while a graph is captured: at most four kernels, or one per step that needs
/// all of the step before (docs/gpu.md counts them). Once the workspace has its size
/// (after the first call with these sizes), nothing is allocated, so that the launches can be
/// captured in a graph.
template <typename Problem>
using Operation = Status (*)(Session*, const Problem&, const Call&);

/// One entry per operation; null where the backend has no kernel for it.
struct Operations {
  Operation<AttentionProblem> attention = nullptr;
  Operation<HashProblem> hash = nullptr;
  Operation<HammingKMeansProblem> hamming_kmeans = nullptr;
  Operation<KMeansProblem> kmeans = nullptr;
  Operation<AggregateProblem> aggregate = nullptr;
  Operation<BroadcastProblem> broadcast = nullptr;
  Operation<TopKProblem> top_k = nullptr;
  Operation<SparseDotProblem> sparse_dot = nullptr;
  Operation<SparseWeightedSumProblem> sparse_weighted_sum = nullptr;
  Operation<ClusteredAttentionProblem> clustered_attention = nullptr;
  Operation<CentroidAttentionProblem> centroid_attention = nullptr;
  Operation<CentroidPoolProblem> centroid_pool = nullptr;
  Operation<CentroidEncodeProblem> centroid_encode = nullptr;
  Operation<CastAttentionProblem> cast_attention = nullptr;
  Operation<MatmulProblem> matmul = nullptr;
  // Gradients; each is in the storage of the input that it belongs to.
  Operation<AggregateGradientProblem> aggregate_gradient = nullptr;
  Operation<BroadcastGradientProblem> broadcast_gradient = nullptr;
  Operation<SparseDotGradientProblem> sparse_dot_gradient = nullptr;
  Operation<SparseWeightedSumGradientProblem> sparse_weighted_sum_gradient = nullptr;
  Operation<AttentionGradientProblem> attention_gradient = nullptr;
  Operation<ClusteredAttentionGradientProblem> clustered_attention_gradient = nullptr;
  Operation<CentroidAttentionGradientProblem> centroid_attention_gradient = nullptr;
  Operation<CentroidPoolGradientProblem> centroid_pool_gradient = nullptr;
  Operation<CentroidEncodeGradientProblem> centroid_encode_gradient = nullptr;
  Operation<CastAttentionGradientProblem> cast_attention_gradient = nullptr;
};

struct Backend {
  uint32_t version = kBackendVersion;

  void (*describe)(BackendInfo* info) = nullptr;
  void (*describe_device)(int32_t device, DeviceInfo* info) = nullptr;

  /// Null in *session unless the status is ok.
  Status (*open_session)(int32_t device, Session** session) = nullptr;
  /// Waits for what was launched and frees everything of the session but what allocate() gave.
  void (*close_session)(Session* session) = nullptr;

  /// Device memory for every session, aligned to 256 bytes; null in *memory unless the status is
  /// ok. 0 bytes give a valid pointer.
  Status (*allocate)(Session* session, int64_t bytes, void** memory) = nullptr;
  /// Returns memory once all work launched so far on this session is done, without waiting. Any
  /// session of the same device will do.
  void (*release)(Session* session, void* memory) = nullptr;

  /// Floats between plain memory and the device, in the device's storage: rounded to the nearest
  /// bfloat16, ties to even. `host` may be reused when upload returns and is filled when download
  /// returns. Both go through pinned memory in two halves, and poll `abort` between pieces.
  Status (*upload)(Session* session, void* device, Storage storage, const float* host,
                   int64_t count, const volatile int32_t* abort) = nullptr;
  Status (*download)(Session* session, float* host, const void* device, Storage storage,
                     int64_t count, const volatile int32_t* abort) = nullptr;
  /// The same for arrays of anything else.
  Status (*upload_bytes)(Session* session, void* device, const void* host, int64_t bytes,
                         const volatile int32_t* abort) = nullptr;
  Status (*download_bytes)(Session* session, void* host, const void* device, int64_t bytes,
                           const volatile int32_t* abort) = nullptr;

  Operations operations;

  /// Waits for everything launched on the session since the last finish(). out_of_range or
  /// duplicate: an index array holds what it may not, with argument and first index, as on the
  /// CPU. *non_finite: a NaN or Inf was read or came out; which argument holds it is for the
  /// caller to search (native/dispatch_arrays.h), since that happens once and then ends the call.
  Status (*finish)(Session* session, bool* non_finite) = nullptr;
};

/// The library's one exported function: null when it was built for another version.
using BackendFunction = const Backend* (*)(uint32_t version);
constexpr const char* kBackendFunctionName = "cluster_attention_cuda_backend";

}  // namespace cluster_attention::cuda
