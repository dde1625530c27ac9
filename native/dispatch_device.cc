#include "native/dispatch_device.h"

#include <cstring>

#include "native/core/context.h"
#include "native/core/shape.h"
#include "native/dispatch_backend.h"
#include "native/kernels/hash.h"

namespace cluster_attention {
namespace {

/// What the backend aligns memory to.
constexpr int64_t kAlignment = 256;

const cuda::Backend& backend() { return *backend_library().backend; }

/// The backend has no kernel for the problem.
Status unsupported() { return {StatusCode::unsupported, "device", -1}; }

/// What cuda::Call::storage speaks of.
constexpr const char* kStored[] = {"query",
                                   "key",
                                   "value",
                                   "inputs",
                                   "scores",
                                   "a",
                                   "b",
                                   "values",
                                   "output",
                                   "gradOutput",
                                   "queryGradient",
                                   "keyGradient",
                                   "valueGradient",
                                   "inputsGradient"};

bool is_float(const ProblemArray& array) { return array.type == ElementType::float32; }

/// How an array of floats lies on the device.
cuda::Storage storage_of(const ProblemArray& array, const DeviceCall& call) {
  return follows_storage(array.name) ? call.storage : cuda::Storage::float32;
}

int64_t bytes_on_device(const ProblemArray& array, const DeviceCall& call) {
  if (!is_float(array)) return array.bytes();
  return array.elements * cuda::storage_bytes(storage_of(array, call));
}

Status upload(cuda::Session* session, const ProblemArray& array, const DeviceCall& call, void* to) {
  if (is_float(array)) {
    return backend().upload(session, to, storage_of(array, call),
                            static_cast<const float*>(array.data()), array.elements, call.abort);
  }
  return backend().upload_bytes(session, to, array.data(), array.bytes(), call.abort);
}

Status download(cuda::Session* session, const ProblemArray& array, const DeviceCall& call, void* to,
                const void* from) {
  if (is_float(array)) {
    return backend().download(session, static_cast<float*>(to), from, storage_of(array, call),
                              array.elements, call.abort);
  }
  return backend().download_bytes(session, to, from, array.bytes(), call.abort);
}

/// The plain arrays of a call while they lie on the device, in one block.
class PlainArrays {
 public:
  PlainArrays(cuda::Session* session, const ProblemArrays& arrays, const DeviceCall& call)
      : session_(session), arrays_(arrays), call_(call) {}
  ~PlainArrays() {
    if (block_ != nullptr) backend().release(session_, block_);
  }
  PlainArrays(const PlainArrays&) = delete;
  PlainArrays& operator=(const PlainArrays&) = delete;

  /// Copies the arguments to the device and points the problem there, at its results too.
  Status place() {
    int64_t bytes = 0;
    for (const ProblemArray& array : arrays_) {
      if (!call_.holds(array.data())) bytes += reserved(array);
    }
    if (bytes == 0) return Status::success();
    CA_RETURN_IF_ERROR(backend().allocate(session_, bytes, &block_));
    char* next = static_cast<char*>(block_);
    int index = 0;
    for (const ProblemArray& array : arrays_) {
      const int place = index++;
      if (call_.holds(array.data())) continue;
      if (array.is_result) host_[place] = array.data();
      if (array.is_read()) CA_RETURN_IF_ERROR(upload(session_, array, call_, next));
      array.redirect(next);
      next += reserved(array);
    }
    return Status::success();
  }

  /// Copies the results back to where the problem pointed; nothing is written there before.
  Status fetch() const {
    const Status status = for_each_result([this](const ProblemArray& array, void* host) {
      return download(session_, array, call_, host, array.data());
    });
    if (status.ok()) return status;
    for_each_result([](const ProblemArray& array, void* host) {
      array.spoil(host);
      return Status::success();
    });
    return status;
  }

 private:
  /// body(array, where it belongs in plain memory), until one fails.
  template <typename Body>
  Status for_each_result(Body&& body) const {
    int index = 0;
    for (const ProblemArray& array : arrays_) {
      void* host = host_[index++];
      if (host != nullptr) CA_RETURN_IF_ERROR(body(array, host));
    }
    return Status::success();
  }

  int64_t reserved(const ProblemArray& array) const {
    return divide_up(bytes_on_device(array, call_), kAlignment) * kAlignment;
  }

  cuda::Session* session_;
  const ProblemArrays& arrays_;
  const DeviceCall& call_;
  void* block_ = nullptr;
  void* host_[ProblemArrays::kMaximum] = {};  // of the plain results
};

/// Which argument holds the NaN or Inf that the device met: a search in plain memory, once, since
/// it ends the call. The problem is as it was called.
template <typename Problem>
Status find_non_finite(Problem problem, cuda::Session* session, const DeviceCall& call) {
  Context context(1, call.abort);
  for (const ProblemArray& array : ProblemArrays(problem)) {
    if (array.is_result || !call.holds(array.data())) continue;
    char* copy = context.workspace().allocate<char>(array.bytes());
    if (copy == nullptr) return Status::out_of_memory();
    CA_RETURN_IF_ERROR(download(session, array, call, copy, array.data()));
    array.redirect(copy);
  }
  return ProblemArrays(problem).find_non_finite(context);
}

/// Launches the operation and waits for it, also when it has failed half-way: its arrays must not
/// go before the device has let go of them.
template <typename Problem>
Status launch(cuda::Operation<Problem> operation, cuda::Session* session, const Problem& problem,
              const CallSettings& settings, const DeviceCall& call, bool* non_finite) {
  cuda::Call launched;
  launched.storage = call.storage;
  launched.precision = settings.precision;
  launched.abort = call.abort;
  const Status status = operation(session, problem, launched);
  const Status finished = backend().finish(session, non_finite);
  return status.ok() ? finished : status;
}

template <typename Problem>
Status run_in_session(cuda::Operation<Problem> operation, const Problem& problem,
                      const CallSettings& settings, const DeviceCall& call,
                      cuda::Session* session) {
  Problem placed = problem;
  const ProblemArrays arrays(placed);
  PlainArrays plain(session, arrays, call);
  CA_RETURN_IF_ERROR(plain.place());
  bool non_finite = false;
  CA_RETURN_IF_ERROR(launch(operation, session, placed, settings, call, &non_finite));
  if (non_finite && settings.non_finite == NonFinite::error) {
    return find_non_finite(problem, session, call);
  }
  return plain.fetch();
}

using Operations = cuda::Operations;

template <typename Problem>
Status execute(cuda::Operation<Problem> Operations::*entry, const Problem& problem,
               const CallSettings& settings, const DeviceCall& call) {
  SessionLease lease(*call.sessions, call.device);
  if (!lease.status().ok()) return lease.status();
  const cuda::Operation<Problem> operation = backend().operations.*entry;
  if (operation == nullptr) return unsupported();
  return lease.conclude(run_in_session(operation, problem, settings, call, lease.session()));
}

/// Floats on the device travel as float32, whatever they are stored as.
Status transfer(const Transfer& transfer, const DeviceCall& call, cuda::Session* session,
                bool upload) {
  const bool is_bfloat16 = transfer.type == DeviceType::bfloat16;
  const cuda::Storage storage = is_bfloat16 ? cuda::Storage::bfloat16 : cuda::Storage::float32;
  if (is_bfloat16 && upload) {
    return backend().upload(session, transfer.device, storage,
                            static_cast<const float*>(transfer.host), transfer.elements,
                            call.abort);
  }
  if (is_bfloat16) {
    return backend().download(session, static_cast<float*>(transfer.host), transfer.device, storage,
                              transfer.elements, call.abort);
  }
  const int64_t bytes = transfer.elements * device_type_bytes(transfer.type);
  return upload
             ? backend().upload_bytes(session, transfer.device, transfer.host, bytes, call.abort)
             : backend().download_bytes(session, transfer.host, transfer.device, bytes, call.abort);
}

Status transfer(const Transfer& problem, const DeviceCall& call, bool upload) {
  SessionLease lease(*call.sessions, call.device);
  if (!lease.status().ok()) return lease.status();
  const Status status = transfer(problem, call, lease.session(), upload);
  bool non_finite = false;
  const Status finished = backend().finish(lease.session(), &non_finite);
  return lease.conclude(status.ok() ? finished : status);
}

}  // namespace

int64_t device_type_bytes(DeviceType type) {
  switch (type) {
    case DeviceType::bfloat16:
      return 2;
    case DeviceType::float32:
    case DeviceType::int32:
      return 4;
    default:
      return 8;
  }
}

bool follows_storage(const char* array) {
  for (const char* name : kStored) {
    if (std::strcmp(array, name) == 0) return true;
  }
  return false;
}

bool DeviceCall::holds(const void* data) const {
  for (int i = 0; i < residents; ++i) {
    if (resident[i] == data) return true;
  }
  return false;
}

Status refuse_on_device(const DeviceCall& call) {
  SessionLease lease(*call.sessions, call.device);
  return lease.status().ok() ? unsupported() : lease.status();
}

#define CA_DEVICE_RUN(Problem, entry)                                        \
  Status run_on_device(const Problem& problem, const CallSettings& settings, \
                       const DeviceCall& call) {                             \
    return execute(&Operations::entry, problem, settings, call);             \
  }
CA_DEVICE_RUN(AttentionProblem, attention)
CA_DEVICE_RUN(HashProblem, hash)
CA_DEVICE_RUN(HammingKMeansProblem, hamming_kmeans)
CA_DEVICE_RUN(KMeansProblem, kmeans)
CA_DEVICE_RUN(AggregateProblem, aggregate)
CA_DEVICE_RUN(BroadcastProblem, broadcast)
CA_DEVICE_RUN(TopKProblem, top_k)
CA_DEVICE_RUN(SparseDotProblem, sparse_dot)
CA_DEVICE_RUN(SparseWeightedSumProblem, sparse_weighted_sum)
CA_DEVICE_RUN(CentroidAttentionProblem, centroid_attention)
CA_DEVICE_RUN(CentroidPoolProblem, centroid_pool)
CA_DEVICE_RUN(CentroidEncodeProblem, centroid_encode)
CA_DEVICE_RUN(CastAttentionProblem, cast_attention)
CA_DEVICE_RUN(MatmulProblem, matmul)
CA_DEVICE_RUN(AttentionGradientProblem, attention_gradient)
CA_DEVICE_RUN(AggregateGradientProblem, aggregate_gradient)
CA_DEVICE_RUN(BroadcastGradientProblem, broadcast_gradient)
CA_DEVICE_RUN(SparseDotGradientProblem, sparse_dot_gradient)
CA_DEVICE_RUN(SparseWeightedSumGradientProblem, sparse_weighted_sum_gradient)
CA_DEVICE_RUN(ClusteredAttentionGradientProblem, clustered_attention_gradient)
CA_DEVICE_RUN(CentroidAttentionGradientProblem, centroid_attention_gradient)
CA_DEVICE_RUN(CentroidPoolGradientProblem, centroid_pool_gradient)
CA_DEVICE_RUN(CentroidEncodeGradientProblem, centroid_encode_gradient)
CA_DEVICE_RUN(CastAttentionGradientProblem, cast_attention_gradient)
#undef CA_DEVICE_RUN

Status run_on_device(const ClusteredAttentionProblem& problem, const CallSettings& settings,
                     const DeviceCall& call) {
  ClusteredAttentionProblem complete = problem;
  Context context(1, call.abort);
  CA_RETURN_IF_ERROR(draw_missing_planes(complete, context));
  return execute(&Operations::clustered_attention, complete, settings, call);
}

Status run_on_device(const UploadProblem& problem, const CallSettings&, const DeviceCall& call) {
  return transfer(problem, call, true);
}

Status run_on_device(const DownloadProblem& problem, const CallSettings&, const DeviceCall& call) {
  return transfer(problem, call, false);
}

Status run_on_device(const ProbeProblem&, const CallSettings&, const DeviceCall& call) {
  return SessionLease(*call.sessions, call.device).status();
}

}  // namespace cluster_attention
