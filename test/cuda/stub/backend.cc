// A stand-in for the CUDA backend, for tests of everything in front of it: device memory is plain
// memory, operations are the CPU's kernels. It watches over its callers (memory that is used but
// not its own, sessions used by two threads at once) and fails on demand: the environment variable
// CLUSTER_ATTENTION_STUB holds words such as "slow=500,lost=2", see Wishes.

#include "cuda/backend.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "native/core/context.h"
#include "native/dispatch.h"
#include "native/dispatch_arrays.h"
#include "native/dispatch_device.h"

namespace cluster_attention {
namespace cuda {

class Session {
 public:
  int32_t device = 0;
  std::atomic<bool> busy{false};
  Status fault;
  bool non_finite = false;
};

namespace {

/// What the environment asks for. Numbers count from 1 and mean "that one only"; 0 is never.
struct Wishes {
  int64_t other_version = 0;  // 1: built for another version
  int64_t no_driver = 0;      // 1: CUDA finds no device
  int64_t out_of_memory = 0;  // the n-th allocation fails
  int64_t error = 0;          // the n-th operation fails, the device works on
  int64_t lost = 0;           // the n-th operation loses its device
  int64_t slow = 0;           // milliseconds that each operation takes, abort is polled
  int64_t deaf = 0;           // milliseconds after that, as of a kernel that has been launched
  int64_t report = 0;         // 1: says at the end of the process what is left
  int64_t capacity = 0;       // MiB of memory that a device has
  int64_t torn = 0;           // the n-th copy from a device stops half-way
};

int64_t wish(const char* name) {
  const char* text = std::getenv("CLUSTER_ATTENTION_STUB");
  const size_t length = std::strlen(name);
  while (text != nullptr && *text != '\0') {
    if (std::strncmp(text, name, length) == 0 && text[length] == '=') {
      return std::strtoll(text + length + 1, nullptr, 10);
    }
    text = std::strchr(text, ',');
    if (text != nullptr) ++text;
  }
  return 0;
}

const Wishes& wishes() {
  static const Wishes all = {wish("other_version"), wish("no_driver"), wish("out_of_memory"),
                             wish("error"),         wish("lost"),      wish("slow"),
                             wish("deaf"),          wish("report"),    wish("capacity"),
                             wish("torn")};
  return all;
}

/// Devices 0 and 1 work; there is no code for the last one.
constexpr int32_t kDevices = 3;

/// All that lives in the process, and how often the callers broke a rule.
struct World {
  std::mutex lock;
  std::map<const char*, int64_t> memory;  // begin -> bytes
  int64_t bytes = 0;
  int64_t sessions = 0;
  int64_t allocations = 0;
  int64_t operations = 0;
  std::atomic<int64_t> downloads{0};
  std::vector<const char*> misuse;
  std::atomic<bool> lost[kDevices] = {};
};

World& world() {
  static World* all = new World();  // lives on while the process ends
  return *all;
}

void complain(const char* what) {
  const std::lock_guard<std::mutex> guard(world().lock);
  world().misuse.push_back(what);
}

__attribute__((destructor)) void report() {
  if (wishes().report == 0) return;
  World& all = world();
  std::printf("stub: %lld bytes, %lld sessions, %lld operations", static_cast<long long>(all.bytes),
              static_cast<long long>(all.sessions), static_cast<long long>(all.operations));
  for (const char* what : all.misuse) std::printf(", %s", what);
  std::printf("\n");
}

/// Notes the use of a session, by one thread at a time.
class Use {
 public:
  explicit Use(Session* session) : session_(session) {
    if (session_->busy.exchange(true)) complain("a session was used by two threads");
  }
  ~Use() { session_->busy = false; }
  Status status() const {
    if (!world().lost[session_->device]) return Status::success();
    return {StatusCode::device_lost, "cudaErrorIllegalAddress", -1};
  }

 private:
  Session* session_;
};

/// Whether [data, data + bytes) is device memory that was not released.
bool is_owned(const void* data, int64_t bytes) {
  const std::lock_guard<std::mutex> guard(world().lock);
  const char* begin = static_cast<const char*>(data);
  auto next = world().memory.upper_bound(begin);
  if (next == world().memory.begin()) return false;
  --next;
  return begin + bytes <= next->first + next->second;
}

void check_owned(const void* data, int64_t bytes) {
  if (!is_owned(data, bytes)) complain("memory was used that is not of the device");
}

bool raised(const volatile int32_t* abort) { return abort != nullptr && *abort != 0; }

uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float widen(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ---- sessions and memory ------------------------------------------------------------------------

void describe(BackendInfo* info) {
  info->targets = "75,90a";
  info->runtime_version = 13000;
  if (wishes().no_driver != 0) {
    info->status = {StatusCode::cuda_unavailable, "cudaErrorInsufficientDriver", -1};
    info->reason = "CUDA driver version is insufficient for CUDA runtime version";
    return;
  }
  info->driver_version = 13010;
  info->device_count = kDevices;
}

void describe_device(int32_t device, DeviceInfo* info) {
  std::snprintf(info->name, sizeof info->name, "Stub %d", static_cast<int>(device));
  info->compute_major = device == kDevices - 1 ? 6 : 9;
  info->multiprocessors = 132;
  info->memory_bytes = int64_t{1} << 30;
  if (device == kDevices - 1) {
    info->status = {StatusCode::cuda_unavailable, "cudaErrorNoKernelImageForDevice", -1};
  } else if (world().lost[device]) {
    info->status = {StatusCode::device_lost, "cudaErrorIllegalAddress", -1};
  }
}

Status open_session(int32_t device, Session** session) {
  *session = new Session();
  (*session)->device = device;
  const std::lock_guard<std::mutex> guard(world().lock);
  ++world().sessions;
  return Status::success();
}

void close_session(Session* session) {
  {
    const Use use(session);
    const std::lock_guard<std::mutex> guard(world().lock);
    --world().sessions;
  }
  delete session;
}

Status allocate(Session* session, int64_t bytes, void** memory) {
  *memory = nullptr;
  const Use use(session);
  CA_RETURN_IF_ERROR(use.status());
  const std::lock_guard<std::mutex> guard(world().lock);
  if (++world().allocations == wishes().out_of_memory) return Status::out_of_memory();
  const int64_t capacity = wishes().capacity << 20;
  if (capacity > 0 && world().bytes + bytes > capacity) return Status::out_of_memory();
  char* begin = static_cast<char*>(std::malloc(static_cast<size_t>(bytes) + 1));
  if (begin == nullptr) return Status::out_of_memory();
  std::memset(begin, 0xff, static_cast<size_t>(bytes));  // NaN, -1: what was not written shows
  world().memory[begin] = bytes;
  world().bytes += bytes;
  *memory = begin;
  return Status::success();
}

void release(Session*, void* memory) {
  const std::lock_guard<std::mutex> guard(world().lock);
  const auto entry = world().memory.find(static_cast<char*>(memory));
  if (entry == world().memory.end()) {
    world().misuse.push_back("memory was released twice");
    return;
  }
  world().bytes -= entry->second;
  world().memory.erase(entry);
  std::free(memory);
}

// ---- transfers ----------------------------------------------------------------------------------

Status upload_bytes(Session* session, void* device, const void* host, int64_t bytes,
                    const volatile int32_t* abort) {
  const Use use(session);
  CA_RETURN_IF_ERROR(use.status());
  if (raised(abort)) return Status::cancelled();
  check_owned(device, bytes);
  std::memcpy(device, host, static_cast<size_t>(bytes));
  return Status::success();
}

Status download_bytes(Session* session, void* host, const void* device, int64_t bytes,
                      const volatile int32_t* abort) {
  const Use use(session);
  CA_RETURN_IF_ERROR(use.status());
  if (raised(abort)) return Status::cancelled();
  check_owned(device, bytes);
  const bool torn = ++world().downloads == wishes().torn;
  std::memcpy(host, device, static_cast<size_t>(torn ? bytes / 2 : bytes));
  if (torn) return {StatusCode::cuda_unavailable, "cudaErrorInvalidValue", -1};
  return Status::success();
}

Status upload(Session* session, void* device, Storage storage, const float* host, int64_t count,
              const volatile int32_t* abort) {
  if (storage == Storage::float32) return upload_bytes(session, device, host, 4 * count, abort);
  std::vector<uint16_t> halves;
  for (int64_t i = 0; i < count; ++i) halves.push_back(narrow(host[i]));
  return upload_bytes(session, device, halves.data(), 2 * count, abort);
}

Status download(Session* session, float* host, const void* device, Storage storage, int64_t count,
                const volatile int32_t* abort) {
  if (storage == Storage::float32) return download_bytes(session, host, device, 4 * count, abort);
  std::vector<uint16_t> halves(static_cast<size_t>(count));
  CA_RETURN_IF_ERROR(download_bytes(session, halves.data(), device, 2 * count, abort));
  for (int64_t i = 0; i < count; ++i) host[i] = widen(halves[static_cast<size_t>(i)]);
  return Status::success();
}

// ---- operations ---------------------------------------------------------------------------------

/// An array that is bfloat16 on the device, as floats for the CPU's kernels.
struct Widened {
  uint16_t* halves;
  std::vector<float> floats;
  bool is_result;
};

/// Points the problem at floats where the device holds bfloat16.
void widen_arrays(const ProblemArrays& arrays, const Call& call, std::vector<Widened>& all) {
  all.reserve(ProblemArrays::kMaximum);
  for (const ProblemArray& array : arrays) {
    const bool is_half = call.storage == Storage::bfloat16 && array.type == ElementType::float32 &&
                         follows_storage(array.name);
    check_owned(array.data(), is_half ? 2 * array.elements : array.bytes());
    if (!is_half) continue;
    all.push_back({static_cast<uint16_t*>(array.data()), {}, array.is_result});
    std::vector<float>& floats = all.back().floats;
    floats.resize(static_cast<size_t>(array.elements) + 1);
    for (int64_t i = 0; i < array.elements && array.is_read(); ++i) {
      floats[static_cast<size_t>(i)] = widen(all.back().halves[i]);
    }
    array.redirect(floats.data());
  }
}

void narrow_results(const std::vector<Widened>& all) {
  for (const Widened& array : all) {
    for (size_t i = 0; array.is_result && i + 1 < array.floats.size(); ++i) {
      array.halves[i] = narrow(array.floats[i]);
    }
  }
}

/// Takes as long as it was told to, unless it is aborted.
Status take_time(const Call& call) {
  for (int64_t i = 0; i < wishes().slow; ++i) {
    if (raised(call.abort)) return Status::cancelled();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (raised(call.abort)) return Status::cancelled();
  std::this_thread::sleep_for(std::chrono::milliseconds(wishes().deaf));
  return Status::success();
}

Status begin_operation(Session* session) {
  const std::lock_guard<std::mutex> guard(world().lock);
  const int64_t number = ++world().operations;
  if (number == wishes().error) {
    return {StatusCode::cuda_unavailable, "cudaErrorLaunchOutOfResources", -1};
  }
  if (number == wishes().lost) {
    world().lost[session->device] = true;
    return {StatusCode::device_lost, "cudaErrorIllegalAddress", -1};
  }
  return Status::success();
}

template <typename Problem>
Status operate(Session* session, const Problem& problem, const Call& call) {
  const Use use(session);
  CA_RETURN_IF_ERROR(use.status());
  CA_RETURN_IF_ERROR(begin_operation(session));
  CA_RETURN_IF_ERROR(take_time(call));
  Problem copy = problem;
  std::vector<Widened> widened;
  widen_arrays(ProblemArrays(copy), call, widened);
  Context context(1, wishes().deaf > 0 ? nullptr : call.abort);
  const Status status = run(copy, {NonFinite::propagate, call.precision}, context);
  narrow_results(widened);
  session->non_finite = session->non_finite || context.saw_non_finite();
  const bool is_fault =
      status.code == StatusCode::out_of_range || status.code == StatusCode::duplicate;
  if (!is_fault) return status;
  session->fault = status;  // of what an array holds a device tells when it is done
  return Status::success();
}

Status finish(Session* session, bool* non_finite) {
  const Use use(session);
  const Status fault = session->fault;
  *non_finite = session->non_finite;
  session->fault = Status::success();
  session->non_finite = false;
  CA_RETURN_IF_ERROR(use.status());
  return fault;
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
  Operations& all = backend.operations;
  all.attention = operate<AttentionProblem>;
  all.hash = operate<HashProblem>;
  all.hamming_kmeans = operate<HammingKMeansProblem>;
  all.kmeans = operate<KMeansProblem>;
  all.aggregate = operate<AggregateProblem>;
  all.broadcast = operate<BroadcastProblem>;
  all.top_k = operate<TopKProblem>;
  all.sparse_dot = operate<SparseDotProblem>;
  all.sparse_weighted_sum = operate<SparseWeightedSumProblem>;
  all.clustered_attention = operate<ClusteredAttentionProblem>;
  all.centroid_attention = operate<CentroidAttentionProblem>;
  all.centroid_pool = operate<CentroidPoolProblem>;
  all.centroid_encode = operate<CentroidEncodeProblem>;
  all.cast_attention = operate<CastAttentionProblem>;
  all.matmul = operate<MatmulProblem>;
  all.attention_gradient = operate<AttentionGradientProblem>;
  all.aggregate_gradient = operate<AggregateGradientProblem>;
  all.broadcast_gradient = operate<BroadcastGradientProblem>;
  all.sparse_dot_gradient = operate<SparseDotGradientProblem>;
  all.sparse_weighted_sum_gradient = operate<SparseWeightedSumGradientProblem>;
  all.clustered_attention_gradient = operate<ClusteredAttentionGradientProblem>;
  all.centroid_attention_gradient = operate<CentroidAttentionGradientProblem>;
  all.centroid_pool_gradient = operate<CentroidPoolGradientProblem>;
  all.centroid_encode_gradient = operate<CentroidEncodeGradientProblem>;
  all.cast_attention_gradient = operate<CastAttentionGradientProblem>;
  return backend;
}

}  // namespace
}  // namespace cuda
}  // namespace cluster_attention

extern "C" __attribute__((visibility("default"))) const cluster_attention::cuda::Backend*
cluster_attention_cuda_backend(uint32_t version) {
  using namespace cluster_attention::cuda;
  static const Backend backend = make_backend();
  const bool fits = version == kBackendVersion && wishes().other_version == 0;
  return fits ? &backend : nullptr;
}
