#include "native/simd/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "native/simd/simd.h"

namespace cluster_attention {

namespace {

constexpr int64_t kRepeats = 1'000'000;     // of one task: a few milliseconds
constexpr int64_t kTasksPerWorker = 8;      // a thread that wakes late must not hold up the others
constexpr int kRounds = 3;                  // the best one counts: a peak is a limit
constexpr double kWorthEveryThread = 1e12;  // operations, for Context::parallel

}  // namespace

double measure_peak_gflops(Context& context) {
  const int64_t tasks = context.workers() * kTasksPerWorker;
  const double operations = 2.0 * static_cast<double>(simd().width) * kMultiplyAddChains *
                            static_cast<double>(kRepeats) * static_cast<double>(tasks);
  std::atomic<float> sink{0.0f};  // keeps the compiler from dropping the work
  double best = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const Status status = context.parallel(
        tasks,
        [&](int64_t task, int) {
          sink.store(simd().multiply_adds(static_cast<float>(task), kRepeats));
        },
        kWorthEveryThread);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (!status.ok()) return 0.0;
    best = std::max(best, operations / elapsed.count() * 1e-9);
  }
  return best;
}

}  // namespace cluster_attention
