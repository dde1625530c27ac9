#pragma once

// One pool of threads for the whole process, shared by all environments (main thread, workers).
// Two kinds of work: tasks, the equal parts of one operation, handed out by an atomic counter; and
// calls, whole asynchronous operations, which run on a pool thread and split themselves into
// tasks. A thread that helps takes a waiting call before its next task, so that a long call cannot
// starve a short one (with a single thread calls run one after the other); libuv's threads are
// never used.

#include <cstdint>

namespace cluster_attention {

/// Runs task `task` as worker `worker` of the job; worker < the limit given to run().
using TaskFunction = void (*)(void* context, int64_t task, int worker);
/// Runs a whole asynchronous call.
using CallFunction = void (*)(void* context);

/// More threads than this is a mistake, not a machine.
constexpr int kMaximumThreads = 1024;

class ThreadPool {
 public:
  static ThreadPool& instance();

  /// Threads that may compute at once, the caller of a synchronous operation included.
  int threads() const;
  /// Changes the number of threads; running work finishes undisturbed. At least 1.
  void set_threads(int count);

  /// Runs tasks 0..count-1 and returns when all are done. The calling thread takes part as worker
  /// 0; at most `workers` threads work on it. Tasks not yet begun are dropped once *abort != 0.
  void run(int64_t count, int workers, const volatile int32_t* abort, TaskFunction function,
           void* context);

  /// Queues a call for a pool thread. False when no thread can be started for it.
  bool post(CallFunction function, void* context);

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

 private:
  ThreadPool();
  ~ThreadPool() = delete;  // lives as long as the process: its threads may outlast any owner

  struct State;
  State* state_;
};

/// For fault tests: while set, no thread can be started.
void fail_thread_starts(bool fail);

/// CLUSTER_ATTENTION_NUM_THREADS if that is a positive number in digits alone, else the hardware
/// threads.
int default_thread_count();

}  // namespace cluster_attention
