#include "native/core/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "native/core/abort.h"
#include "native/core/context.h"
#include "test/native/harness.h"

namespace cluster_attention::test {

namespace {

/// Spins until done() or five seconds have passed.
template <typename Condition>
bool eventually(Condition done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST_ONCE("thread pool: every task runs once, by a worker below the limit") {
  for (int workers : {1, 2, 3, 8}) {
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      std::atomic<bool> in_range{true};
      Context context(workers);
      const Status status = context.parallel(tasks, [&](int64_t task, int worker) {
        ++runs[task];
        if (worker < 0 || worker >= workers) in_range = false;
      });
      CHECK(status.ok());
      CHECK(in_range);
      for (const auto& count : runs) CHECK_EQUAL(count.load(), 1);
    }
  }
}

TEST_ONCE("thread pool: no worker runs two tasks at once") {
  std::atomic<int> busy[8] = {};
  std::atomic<bool> overlap{false};
  Context context(8);
  context.parallel(500, [&](int64_t, int worker) {
    if (busy[worker].fetch_add(1) != 0) overlap = true;
    for (volatile int i = 0; i < 1000; i = i + 1) {
    }
    busy[worker].fetch_sub(1);
  });
  CHECK(!overlap);
}

TEST_ONCE("thread pool: several operations share it") {
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        Context context(3);
        context.parallel(20, [&](int64_t, int) { ++total; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(total.load(), 4 * 50 * 20);
}

TEST_ONCE("thread pool: posted calls run, and may run tasks themselves") {
  constexpr int kCalls = 40;
  static std::atomic<int> finished;
  static std::atomic<int> tasks;
  finished = 0;
  tasks = 0;
  for (int i = 0; i < kCalls; ++i) {
    CHECK(ThreadPool::instance().post(
        [](void*) {
          Context context(4);
          context.parallel(10, [](int64_t, int) { ++tasks; });
          ++finished;
        },
        nullptr));
  }
  CHECK(eventually([] { return finished == kCalls; }));
  CHECK_EQUAL(tasks.load(), kCalls * 10);
}

TEST_ONCE("thread pool: the number of threads changes while work runs") {
  ThreadPool& pool = ThreadPool::instance();
  const int before = pool.threads();
  std::atomic<bool> stop{false};
  std::atomic<int64_t> runs{0};
  std::thread caller([&] {
    while (!stop) {
      Context context(8);
      context.parallel(16, [&](int64_t, int) { ++runs; });
    }
  });
  for (int count : {1, 5, 2, 8, 1, 3}) {
    pool.set_threads(count);
    CHECK_EQUAL(pool.threads(), count);
    const int64_t seen = runs;
    CHECK(eventually([&] { return runs > seen + 32; }));
  }
  stop = true;
  caller.join();
  CHECK_EQUAL(runs.load() % 16, 0);
  pool.set_threads(0);
  CHECK_EQUAL(pool.threads(), 1);
  pool.set_threads(before);
}

TEST_ONCE("thread pool: a raised abort flag drops the tasks not yet begun") {
  for (int workers : {1, 4}) {
    volatile int32_t abort = 0;
    std::atomic<int> runs{0};
    Context context(workers, &abort);
    const Status status = context.parallel(10000, [&](int64_t, int) {
      if (++runs == 10) raise_flag(&abort);
    });
    CHECK(status.code == StatusCode::cancelled);
    CHECK(runs < 10000);
  }
}

TEST_ONCE("thread pool: the first failure of a parallel section is returned") {
  Context context(3);
  const Status status = context.parallel(100, [&](int64_t task, int) {
    if (task == 41) context.fail({StatusCode::out_of_range, "labels", 41});
  });
  CHECK(status.code == StatusCode::out_of_range);
  CHECK_EQUAL(status.index, 41);
}

TEST_ONCE("thread pool: the default number of threads is positive") {
  CHECK(default_thread_count() >= 1);
}

}  // namespace

}  // namespace cluster_attention::test
