#include "native/core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "native/core/abort.h"
#include "native/core/wait.h"

namespace cluster_attention {

namespace {

/// How long a thread looks for work, or a caller for its helpers, before it sleeps: about as long
/// as waking it would take. An operation is a chain of short parallel phases.
constexpr std::chrono::microseconds kPatience{40};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Watches until `arrived()` or until patience ends.
template <typename Arrived>
void watch(Arrived&& arrived) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!arrived() && std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16; ++i) pause();
  }
}

std::atomic<bool> thread_starts_fail{false};

/// The tasks of one operation. It lives on the stack of the thread that called run(), which leaves
/// only when no helper is inside any more.
struct Job {
  Job(int64_t tasks, int limit, const volatile int32_t* flag, TaskFunction body, void* argument)
      : count(tasks), workers(limit), abort_flag(flag), function(body), context(argument) {}

  const int64_t count;
  const int workers;
  const volatile int32_t* const abort_flag;
  const TaskFunction function;
  void* const context;

  std::atomic<int64_t> next{0};
  Job* following = nullptr;

  // Guarded by the pool's lock. A helper that leaves early gives its id back.
  std::atomic<int> inside{0};  // helpers working at this moment; watched without the lock
  int ids_given = 1;           // ids 0..ids_given-1 have been used; 0 is the caller
  int ids_returned = 0;
  uint16_t returned[kMaximumThreads];

  bool wants_helper() const {
    return next.load(std::memory_order_relaxed) < count &&
           (ids_given < workers || ids_returned > 0);
  }
  int take_id() { return ids_returned > 0 ? returned[--ids_returned] : ids_given++; }
  void return_id(int id) { returned[ids_returned++] = static_cast<uint16_t>(id); }

  /// Runs tasks until none is left or `leave()` says to stop after a task.
  template <typename Leave>
  void work(int worker, Leave&& leave) {
    for (;;) {
      if (is_raised(abort_flag)) {
        next.store(count, std::memory_order_relaxed);
        return;
      }
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= count) return;
      function(context, task, worker);
      if (leave()) return;
    }
  }
};

/// A queued asynchronous call.
struct Call {
  CallFunction function;
  void* context;
  Call* following = nullptr;
};

}  // namespace

struct ThreadPool::State {
  std::mutex lock;
  std::condition_variable work_arrived;  // for pool threads
  std::condition_variable job_left;      // for callers of run() waiting for their helpers
  Job* jobs = nullptr;                   // that may take helpers, served in turn
  Call* first_call = nullptr;
  Call* last_call = nullptr;
  std::atomic<int> waiting_calls{0};
  std::atomic<uint64_t> arrivals{0};  // of jobs and calls; watched without the lock
  std::atomic<int> threads{1};        // wanted
  int started = 0;                    // pool threads that exist
  int busy_with_calls = 0;

  void main_loop();
  bool start_thread();
  Job* find_job();
  void help(Job* job, std::unique_lock<std::mutex>& guard);
};

/// Takes the first job that has room for a helper, and moves it to the end: jobs are served in
/// turn.
Job* ThreadPool::State::find_job() {
  for (Job** link = &jobs; *link != nullptr; link = &(*link)->following) {
    Job* job = *link;
    if (!job->wants_helper()) continue;
    *link = job->following;
    job->following = nullptr;
    Job** end = &jobs;
    while (*end != nullptr) end = &(*end)->following;
    *end = job;
    return job;
  }
  return nullptr;
}

void ThreadPool::State::help(Job* job, std::unique_lock<std::mutex>& guard) {
  const int worker = job->take_id();
  ++job->inside;
  guard.unlock();
  job->work(worker, [this] { return waiting_calls.load(std::memory_order_relaxed) > 0; });
  guard.lock();
  job->return_id(worker);
  if (--job->inside == 0) job_left.notify_all();
}

void ThreadPool::State::main_loop() {
  std::unique_lock<std::mutex> guard(lock);
  for (;;) {
    if (started > threads.load(std::memory_order_relaxed)) break;
    if (first_call != nullptr) {
      Call* call = first_call;
      first_call = call->following;
      if (first_call == nullptr) last_call = nullptr;
      waiting_calls.fetch_sub(1, std::memory_order_relaxed);
      ++busy_with_calls;
      guard.unlock();
      const Call taken = *call;
      delete call;
      taken.function(taken.context);
      guard.lock();
      --busy_with_calls;
    } else if (Job* job = find_job()) {
      help(job, guard);
    } else {
      const uint64_t seen = arrivals.load(std::memory_order_relaxed);
      guard.unlock();
      watch([&] { return arrivals.load(std::memory_order_relaxed) != seen; });
      guard.lock();
      if (arrivals.load(std::memory_order_relaxed) == seen) wait(work_arrived, guard);
    }
  }
  --started;
}

bool ThreadPool::State::start_thread() {
  if (thread_starts_fail.load(std::memory_order_relaxed)) return false;
  // std::thread reports failure by an exception; it ends here.
  try {
    std::thread([this] { main_loop(); }).detach();
  } catch (const std::system_error&) {
    return false;
  } catch (const std::bad_alloc&) {
    return false;
  }
  ++started;
  return true;
}

ThreadPool::ThreadPool() {
  alignas(State) static char memory[sizeof(State)];
  state_ = new (memory) State;
  set_threads(default_thread_count());
}

ThreadPool& ThreadPool::instance() {
  alignas(ThreadPool) static char memory[sizeof(ThreadPool)];
  static ThreadPool* pool = new (memory) ThreadPool;
  return *pool;
}

int ThreadPool::threads() const { return state_->threads.load(std::memory_order_relaxed); }

void ThreadPool::set_threads(int count) {
  state_->threads.store(std::clamp(count, 1, kMaximumThreads), std::memory_order_relaxed);
  const std::lock_guard<std::mutex> guard(state_->lock);
  state_->work_arrived.notify_all();  // surplus threads leave
}

void ThreadPool::run(int64_t count, int workers, const volatile int32_t* abort,
                     TaskFunction function, void* context) {
  if (count <= 0) return;
  workers = static_cast<int>(std::min<int64_t>({workers, count, kMaximumThreads}));
  Job job(count, workers, abort, function, context);
  const auto never = [] { return false; };
  if (job.workers <= 1) {
    job.work(0, never);
    return;
  }
  {
    const std::lock_guard<std::mutex> guard(state_->lock);
    // One thread fewer than allowed: the caller works too.
    const int helpers = std::min(job.workers, threads()) - 1;
    while (state_->started < helpers && state_->start_thread()) {
    }
    Job** end = &state_->jobs;
    while (*end != nullptr) end = &(*end)->following;
    *end = &job;
    state_->arrivals.fetch_add(1, std::memory_order_relaxed);
    for (int i = 0; i < helpers; ++i) state_->work_arrived.notify_one();
  }
  job.work(0, never);
  std::unique_lock<std::mutex> guard(state_->lock);
  Job** link = &state_->jobs;
  while (*link != &job) link = &(*link)->following;
  *link = job.following;
  guard.unlock();  // no helper can join any more
  watch([&job] { return job.inside.load(std::memory_order_relaxed) == 0; });
  guard.lock();
  while (job.inside != 0) wait(state_->job_left, guard);
}

bool ThreadPool::post(CallFunction function, void* context) {
  Call* call = new (std::nothrow) Call{function, context};
  if (call == nullptr) return false;
  const std::lock_guard<std::mutex> guard(state_->lock);
  const int waiting = state_->waiting_calls.load(std::memory_order_relaxed);
  if (state_->busy_with_calls + waiting >= state_->started && state_->started < threads()) {
    state_->start_thread();
  }
  if (state_->started == 0 && !state_->start_thread()) {
    delete call;
    return false;
  }
  if (state_->last_call != nullptr) {
    state_->last_call->following = call;
  } else {
    state_->first_call = call;
  }
  state_->last_call = call;
  state_->waiting_calls.fetch_add(1, std::memory_order_relaxed);
  state_->arrivals.fetch_add(1, std::memory_order_relaxed);
  state_->work_arrived.notify_one();
  return true;
}

void fail_thread_starts(bool fail) { thread_starts_fail.store(fail, std::memory_order_relaxed); }

int default_thread_count() {
  const int hardware = std::max(1u, std::thread::hardware_concurrency());
  const char* wanted = std::getenv("CLUSTER_ATTENTION_NUM_THREADS");
  // Digits alone: strtol() would also take a sign and spaces before them.
  if (wanted == nullptr || *wanted < '0' || *wanted > '9') return hardware;
  char* end = nullptr;
  const long count = std::strtol(wanted, &end, 10);
  return *end == '\0' && count > 0 ? static_cast<int>(std::min<long>(count, kMaximumThreads))
                                   : hardware;
}

}  // namespace cluster_attention
