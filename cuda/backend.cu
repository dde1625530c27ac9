#include <cstring>

#include "cuda/aggregate.h"
#include "cuda/attention.h"
#include "cuda/attention_gradient.h"
#include "cuda/backend.h"
#include "cuda/broadcast.h"
#include "cuda/cast_attention.h"
#include "cuda/cast_attention_gradient.h"
#include "cuda/centroid_attention.h"
#include "cuda/centroid_encode.h"
#include "cuda/centroid_encode_gradient.h"
#include "cuda/centroid_gradient.h"
#include "cuda/centroid_pool.h"
#include "cuda/centroid_pool_gradient.h"
#include "cuda/clustered_attention.h"
#include "cuda/clustered_attention_gradient.h"
#include "cuda/clustering_gradient.h"
#include "cuda/errors.h"
#include "cuda/hamming_kmeans.h"
#include "cuda/hash.h"
#include "cuda/kmeans.h"
#include "cuda/matmul.h"
#include "cuda/session.h"
#include "cuda/sparse.h"
#include "cuda/sparse_gradient.h"
#include "cuda/targets.h"
#include "cuda/top_k.h"

namespace cluster_attention::cuda {

namespace {

void describe(BackendInfo* info) {
  *info = BackendInfo();
  info->targets = compiled_targets();
  int version = 0;
  if (cudaRuntimeGetVersion(&version) == cudaSuccess) info->runtime_version = version;
  version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess) info->driver_version = version;
  int devices = 0;  // left as it is where the call fails
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) {
    info->device_count = devices;
    return;
  }
  const cudaError_t cause = error == cudaSuccess ? cudaErrorNoDevice : error;
  info->status = {StatusCode::cuda_unavailable, cudaGetErrorName(cause), -1};
  info->reason = cudaGetErrorString(cause);
  (void)cudaGetLastError();
}

void describe_device(int32_t device, DeviceInfo* info) {
  *info = DeviceInfo();
  info->status = device_status(device);
  if (!info->status.ok()) return;
  cudaDeviceProp properties = {};
  info->status = status_of(cudaGetDeviceProperties(&properties, device), device);
  if (!info->status.ok()) return;
  std::memcpy(info->name, properties.name, sizeof info->name);
  info->name[sizeof info->name - 1] = '\0';
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  if (!runs_on(compiled_targets(), properties.major, properties.minor)) {
    info->status = status_of(cudaErrorNoKernelImageForDevice, device);
  }
}

Status open_session(int32_t device, Session** session) { return Session::open(device, session); }

void close_session(Session* session) { delete session; }

/// A call on a session: its device is current meanwhile, and a lost device answers at once.
template <typename Body>
Status on_device(Session* session, const volatile int32_t* abort, Body body) {
  CA_RETURN_IF_ERROR(session->begin(abort));
  const DeviceScope scope(session->device());
  Status status = session->check(scope.error());
  if (status.ok()) status = body();
  (void)session->begin(nullptr);
  return status;
}

Status allocate(Session* session, int64_t bytes, void** memory) {
  *memory = nullptr;
  return on_device(session, nullptr, [&] {
    CA_RETURN_IF_ERROR(session->allocate(bytes, memory));
    // It is there in the order of this stream, and other sessions will use it. Nothing else is on
    // the stream of a session that is at rest, so that no kernel is waited for.
    const Status there = session->check(cudaStreamSynchronize(session->stream()));
    if (there.ok()) return there;
    session->release(*memory);
    *memory = nullptr;
    return there;
  });
}

void release(Session* session, void* memory) { session->release(memory); }

Status upload(Session* session, void* device, Storage storage, const float* host, int64_t count,
              const volatile int32_t* abort) {
  return on_device(session, abort,
                   [&] { return session->staging().upload(device, storage, host, count, abort); });
}

Status download(Session* session, float* host, const void* device, Storage storage, int64_t count,
                const volatile int32_t* abort) {
  return on_device(session, abort, [&] {
    return session->staging().download(host, device, storage, count, abort);
  });
}

Status upload_bytes(Session* session, void* device, const void* host, int64_t bytes,
                    const volatile int32_t* abort) {
  return on_device(session, abort,
                   [&] { return session->staging().upload_bytes(device, host, bytes, abort); });
}

Status download_bytes(Session* session, void* host, const void* device, int64_t bytes,
                      const volatile int32_t* abort) {
  return on_device(session, abort,
                   [&] { return session->staging().download_bytes(host, device, bytes, abort); });
}

Status finish(Session* session, bool* non_finite) {
  *non_finite = false;
  return on_device(session, nullptr, [&] { return session->finish(non_finite); });
}

template <typename Problem>
using Launcher = Status (*)(Session&, const Problem&, const Call&);

/// An entry of Operations made of the launcher of its file.
template <typename Problem, Launcher<Problem> kLauncher>
Status operate(Session* session, const Problem& problem, const Call& call) {
  return on_device(session, call.abort, [&] { return kLauncher(*session, problem, call); });
}

Backend make_backend() {
  Backend backend;
  backend.describe = describe;
  backend.describe_device = describe_device;
  backend.open_session = open_session;
  backend.close_session = close_session;
  backend.allocate = allocate;
  backend.release = release;
  backend.upload = upload;
  backend.download = download;
  backend.upload_bytes = upload_bytes;
  backend.download_bytes = download_bytes;
  backend.finish = finish;
  Operations& operations = backend.operations;
  operations.attention = operate<AttentionProblem, attention>;
  operations.hamming_kmeans = operate<HammingKMeansProblem, hamming_kmeans>;
  operations.hash = operate<HashProblem, hash>;
  operations.clustered_attention = operate<ClusteredAttentionProblem, clustered_attention>;
  operations.centroid_attention = operate<CentroidAttentionProblem, centroid_attention>;
  operations.centroid_pool = operate<CentroidPoolProblem, centroid_pool>;
  operations.centroid_encode = operate<CentroidEncodeProblem, centroid_encode>;
  operations.cast_attention = operate<CastAttentionProblem, cast_attention>;
  operations.aggregate = operate<AggregateProblem, aggregate>;
  operations.broadcast = operate<BroadcastProblem, broadcast>;
  operations.kmeans = operate<KMeansProblem, kmeans>;
  operations.matmul = operate<MatmulProblem, matmul>;
  operations.sparse_dot = operate<SparseDotProblem, sparse_dot>;
  operations.sparse_weighted_sum = operate<SparseWeightedSumProblem, sparse_weighted_sum>;
  operations.top_k = operate<TopKProblem, top_k>;
  operations.aggregate_gradient = operate<AggregateGradientProblem, aggregate_gradient>;
  operations.broadcast_gradient = operate<BroadcastGradientProblem, broadcast_gradient>;
  operations.sparse_dot_gradient = operate<SparseDotGradientProblem, sparse_dot_gradient>;
  operations.sparse_weighted_sum_gradient =
      operate<SparseWeightedSumGradientProblem, sparse_weighted_sum_gradient>;
  operations.attention_gradient = operate<AttentionGradientProblem, attention_gradient>;
  operations.clustered_attention_gradient =
      operate<ClusteredAttentionGradientProblem, clustered_attention_gradient>;
  operations.centroid_attention_gradient =
      operate<CentroidAttentionGradientProblem, centroid_attention_gradient>;
  operations.centroid_encode_gradient =
      operate<CentroidEncodeGradientProblem, centroid_encode_gradient>;
  operations.centroid_pool_gradient = operate<CentroidPoolGradientProblem, centroid_pool_gradient>;
  operations.cast_attention_gradient =
      operate<CastAttentionGradientProblem, cast_attention_gradient>;
  return backend;
}

}  // namespace

}  // namespace cluster_attention::cuda

extern "C" __attribute__((visibility("default"))) const cluster_attention::cuda::Backend*
cluster_attention_cuda_backend(uint32_t version) {
  using namespace cluster_attention::cuda;
  static const Backend backend = make_backend();
  return version == kBackendVersion ? &backend : nullptr;
}
