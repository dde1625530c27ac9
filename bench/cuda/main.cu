// cuda_bench [--rounds R] [--warm] [--unchecked] [--only NAME ...] [lengths ...]: times every operation,
// or those of some names, on tensors that stay on the device: CUDA events around one call, the L2
// cache flushed before each (with --warm it keeps what the call before has left there, code and
// data), the median of R (default 30); and how long the host takes to put a call in the queue.
// Prints one line of JSON per measurement; transfers do not count. Results are compared with the
// CPU's first, but with --unchecked, when another run has done so. A profiler that is told not to
// begin at the start sees the timed calls alone.

#include <cuda_profiler_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/cuda/cases.h"
#include "cuda/session.h"
#include "native/core/thread_pool.h"

namespace cluster_attention::bench {
namespace {

using cuda::Storage;

constexpr int64_t kFlushBytes = int64_t{256} << 20;  // more than any L2 cache
/// Instead of a flush: keeps the device busy while the call is put in its queue.
constexpr int64_t kBusyBytes = int64_t{1} << 20;
constexpr int kBusyRounds = 40;

struct Settings {
  int rounds = 30;
  bool warm = false;
  bool checked = true;
  std::vector<std::string> only;  // names of cases; empty: all

  bool wants(const std::string& name) const {
    return only.empty() || std::find(only.begin(), only.end(), name) != only.end();
  }
  std::vector<int64_t> lengths;
};

struct Times {
  double median = 0.0;
  double fastest = 0.0;
  double slowest = 0.0;
  double host = 0.0;  // median until the call returns, which waits for nothing
};

bool occupy(cuda::Session* session, void* flush, bool warm) {
  const auto set = [&](int64_t bytes) {
    return cudaMemsetAsync(flush, 0, static_cast<size_t>(bytes), session->stream()) == cudaSuccess;
  };
  if (!warm) return set(kFlushBytes);
  bool works = true;
  for (int i = 0; i < kBusyRounds; ++i) works = works && set(kBusyBytes);
  return works;
}

/// Seconds between two events around the call, and on the host; false when something fails.
bool time_once(cuda::Session* session, const Case& one, void* flush, bool warm, cudaEvent_t start,
               cudaEvent_t stop, double* seconds, double* host_seconds) {
  if (!occupy(session, flush, warm)) return false;
  if (cudaEventRecord(start, session->stream()) != cudaSuccess) return false;
  const auto called = std::chrono::steady_clock::now();
  if (!one.run().ok()) return false;
  *host_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - called).count();
  if (cudaEventRecord(stop, session->stream()) != cudaSuccess) return false;
  float milliseconds = 0.0f;
  if (cudaEventSynchronize(stop) != cudaSuccess) return false;
  if (cudaEventElapsedTime(&milliseconds, start, stop) != cudaSuccess) return false;
  *seconds = static_cast<double>(milliseconds) * 1e-3;
  return true;
}

bool measure(cuda::Session* session, const Case& one, void* flush, const Settings& settings,
             Times* times) {
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  if (cudaEventCreate(&start) != cudaSuccess || cudaEventCreate(&stop) != cudaSuccess) return false;
  std::vector<double> seconds;
  std::vector<double> host;
  bool works = true;
  for (int round = -2; round < settings.rounds && works; ++round) {  // the first two size the workspace
    if (round == 0) (void)cudaProfilerStart();
    double one_call = 0.0;
    double on_host = 0.0;
    works = time_once(session, one, flush, settings.warm, start, stop, &one_call, &on_host);
    if (round < 0) continue;
    seconds.push_back(one_call);
    host.push_back(on_host);
  }
  (void)cudaProfilerStop();
  (void)cudaEventDestroy(start);
  (void)cudaEventDestroy(stop);
  if (!works || seconds.empty()) return false;
  std::sort(seconds.begin(), seconds.end());
  std::sort(host.begin(), host.end());
  *times = {seconds[seconds.size() / 2], seconds.front(), seconds.back(), host[host.size() / 2]};
  return true;
}

const char* name_of(Storage storage) {
  return storage == Storage::bfloat16 ? "bfloat16" : "float32";
}

void print(const Case& one, const Times& times, const Settings& settings) {
  std::printf(
      "{\"kernel\":\"%s\",\"length\":%lld,\"storage\":\"%s\",\"rounds\":%d,%s"
      "\"microseconds\":%.1f,\"fastest\":%.1f,\"slowest\":%.1f,\"host\":%.1f,\"tflops\":%.1f",
      one.name.c_str(), static_cast<long long>(one.length), name_of(one.storage), settings.rounds,
      settings.warm ? "\"warm\":true," : "", times.median * 1e6, times.fastest * 1e6,
      times.slowest * 1e6, times.host * 1e6, one.operations / times.median * 1e-12);
  if (one.floor > 0.0 && one.storage == Storage::bfloat16) {
    std::printf(",\"timesTheFloor\":%.2f", times.median / one.floor);
  }
  std::printf("}\n");
}

/// How many results are too far from the CPU's.
int compare(cuda::Session* session, Storage storage) {
  const double bound = storage == Storage::bfloat16 ? 2e-2 : 3e-5;
  int failed = 0;
  for (const CaseError& one : case_errors(session, storage)) {
    char error[32] = "null";  // JSON knows no infinity
    if (std::isfinite(one.error)) std::snprintf(error, sizeof error, "%.2e", one.error);
    std::printf("{\"compared\":\"%s\",\"storage\":\"%s\",\"error\":%s,\"bound\":%.0e}\n",
                one.name.c_str(), name_of(storage), error, bound);
    if (!(one.error <= bound)) ++failed;
  }
  return failed;
}

int run_all(cuda::Session* session, const Settings& settings) {
  int failed = 0;
  for (Storage storage : {Storage::bfloat16, Storage::float32}) {
    if (settings.checked) failed += compare(session, storage);
    for (int64_t length : settings.lengths) {
      DeviceMemory memory(session);
      void* flush = memory.allocate(kFlushBytes);
      const std::vector<Case> cases = make_cases(session, memory, length, storage);
      for (const Case& one : cases) {
        if (!settings.wants(one.name)) continue;
        Times times;
        if (memory.complete() && measure(session, one, flush, settings, &times)) {
          print(one, times, settings);
          continue;
        }
        std::fprintf(stderr, "%s at %lld failed\n", one.name.c_str(),
                     static_cast<long long>(length));
        ++failed;
      }
    }
  }
  return failed;
}

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // whole lines, beside those of stderr
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
      settings.rounds = std::max(1, std::atoi(argv[++i]));
    } else if (std::strcmp(argv[i], "--warm") == 0) {
      settings.warm = true;
    } else if (std::strcmp(argv[i], "--unchecked") == 0) {
      settings.checked = false;
    } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      settings.only.emplace_back(argv[++i]);
    } else {
      settings.lengths.push_back(std::max(1ll, std::atoll(argv[i])));
    }
  }
  if (settings.lengths.empty()) settings.lengths = {1024, 4096, 16384, 65536};
  cuda::Session* session = nullptr;
  const Status status = backend().open_session(0, &session);
  if (!status.ok()) {
    std::fprintf(stderr, "no GPU: %s\n", status.argument != nullptr ? status.argument : "");
    return 1;
  }
  cuda::DeviceInfo info;
  backend().describe_device(0, &info);
  std::printf("{\"device\":\"%s\",\"multiprocessors\":%d}\n", info.name, info.multiprocessors);
  const int failed = run_all(session, settings);
  backend().close_session(session);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace cluster_attention::bench

int main(int argc, char** argv) {
  cluster_attention::ThreadPool::instance().set_threads(cluster_attention::default_thread_count());
  return cluster_attention::bench::main(argc, argv);
}
