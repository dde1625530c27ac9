// kernel_bench <kernel> <length> <threads> [rounds]: one kernel in one process. Checks the result
// against double precision first, then times it and prints one line of JSON.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/kernels/cases.h"
#include "native/core/thread_pool.h"
#include "native/simd/peak.h"
#include "native/simd/simd.h"

namespace cluster_attention::bench {
namespace {

double run_once(const Case& test, int threads, Status& status) {
  const auto start = std::chrono::steady_clock::now();
  Context context(threads);
  status = test.run(context);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int measure(const Case& test, int64_t length, int threads, int rounds) {
  Status status;
  const double first = run_once(test, threads, status);
  if (!status.ok()) {
    std::fprintf(stderr, "%s failed with status %d\n", test.kernel.c_str(),
                 static_cast<int>(status.code));
    return 1;
  }
  const double error = test.error();
  const double bound = test.bound > 0.0 ? test.bound : length > 4096 ? 1e-5 : 3e-6;
  if (!(error <= bound)) {
    std::fprintf(stderr, "%s is wrong: relative error %.2e, bound %.0e\n", test.kernel.c_str(),
                 error, bound);
    return 1;
  }
  if (rounds == 0) rounds = static_cast<int>(std::clamp(2.0 / first, 5.0, 200.0));
  std::vector<double> seconds;
  for (int r = 0; r < rounds && status.ok(); ++r) {
    seconds.push_back(run_once(test, threads, status));
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s failed with status %d between others that did not\n",
                 test.kernel.c_str(), static_cast<int>(status.code));
    return 1;
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  Context context(threads);
  const double peak = measure_peak_gflops(context);
  std::printf(
      "{\"kernel\":\"%s\",\"length\":%lld,\"threads\":%d,\"instructionSet\":\"%s\","
      "\"rounds\":%d,\"milliseconds\":%.4f,\"fastest\":%.4f,\"slowest\":%.4f,\"gflops\":%.1f,"
      "\"peakGflops\":%.1f,\"shareOfPeak\":%.3f,\"relativeError\":%.2e}\n",
      test.kernel.c_str(), static_cast<long long>(length), threads, instruction_set(), rounds,
      median * 1e3, seconds.front() * 1e3, seconds.back() * 1e3, test.operations / median * 1e-9,
      peak, test.operations / median * 1e-9 / peak, error);
  return 0;
}

}  // namespace
}  // namespace cluster_attention::bench

int main(int argc, char** argv) {
  using namespace cluster_attention;
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const std::string& name : bench::kernel_names()) std::printf("%s\n", name.c_str());
    return 0;
  }
  if (argc < 4) {
    std::fprintf(stderr, "usage: kernel_bench <kernel> <length> <threads> [rounds]\n");
    return 2;
  }
  const int64_t length = std::atoll(argv[2]);
  const int threads = std::atoi(argv[3]);
  const bench::Case test = bench::make_case(argv[1], length);
  if (!test.run || length < 8 || threads < 1) {
    std::fprintf(stderr, "unknown kernel, or a length below 8, or no thread\n");
    return 2;
  }
  ThreadPool::instance().set_threads(threads);
  return bench::measure(test, length, threads, argc > 4 ? std::atoi(argv[4]) : 0);
}
