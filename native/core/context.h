#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "native/core/abort.h"
#include "native/core/status.h"
#include "native/core/thread_pool.h"
#include "native/core/workspace.h"

namespace cluster_attention {

/// What surrounds one call of an operation: threads, scratch memory, the caller's abort flag, and
/// whether a result showed that something non-finite was read.
class Context {
 public:
  explicit Context(int threads, const volatile int32_t* abort = nullptr)
      : threads_(threads), abort_(abort) {}

  /// Number of workers that parallel() may use: scratch per worker is sized by it.
  int workers() const { return threads_; }
  Workspace& workspace() { return workspace_; }

  bool cancelled() const { return is_raised(abort_); }

  /// Set when precision: 'bfloat16' has rounded the operands of the call's problem; intermediate
  /// values are float32 all the same.
  void set_bfloat16_operands() { bfloat16_operands_ = true; }
  bool bfloat16_operands() const { return bfloat16_operands_; }

  /// Kernels call this when a result is NaN or Inf; the dispatcher then looks for the cause.
  void mark_non_finite() { non_finite_.store(true, std::memory_order_relaxed); }
  bool saw_non_finite() const { return non_finite_.load(std::memory_order_relaxed); }

  /// The first failure inside a parallel section wins; parallel() returns it.
  void fail(const Status& status) {
    bool expected = false;
    if (failed_.compare_exchange_strong(expected, true)) failure_ = status;
  }

  /// Calls body(task, worker) for every task in [0, tasks). Which worker runs a task varies from
  /// run to run: results must depend on the task alone. Long tasks poll cancelled() themselves.
  /// `operations` is a rough count of the arithmetic in all tasks together: waking another thread
  /// for less than kOperationsWorthAThread would cost more than it saves.
  template <typename Body>
  Status parallel(int64_t tasks, Body&& body, double operations = kOperationsWorthAThread) {
    if (cancelled()) return Status::cancelled();
    ThreadPool::instance().run(
        tasks, operations < kOperationsWorthAThread ? 1 : threads_, abort_,
        [](void* context, int64_t task, int worker) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
    if (cancelled()) return Status::cancelled();
    if (failed_.load()) return failure_;
    return Status::success();
  }

 private:
  static constexpr double kOperationsWorthAThread = 1e6;

  int threads_;
  const volatile int32_t* abort_;
  Workspace workspace_;
  bool bfloat16_operands_ = false;
  std::atomic<bool> non_finite_{false};
  std::atomic<bool> failed_{false};
  Status failure_;
};

}  // namespace cluster_attention
