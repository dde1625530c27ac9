#pragma once

// What one JavaScript environment (the main thread or a Worker) keeps: its calls in progress, and
// the thread-safe function by which other threads report back, and what it uses of devices.
// Environments share what belongs to the process: the thread pool, the memory that is kept between
// calls, and the CUDA backend.
//
// Life of a call: queued -> running -> finished -> settled on the JavaScript thread. When the
// environment goes away (the end of a Worker, or of a program that has nothing left to do) its
// cleanup hook raises the abort flag of every call, takes back those still queued, and waits for
// those running, because they read memory that belongs to the environment. A main thread that ends
// by process.exit() or by an error runs no hook: its threads end with the process, wherever they
// are.

#include <node_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "native/binding/device_memory.h"
#include "native/binding/device_threads.h"
#include "native/core/status.h"

namespace cluster_attention {
namespace binding {

class Environment;

/// One asynchronous call; AsyncCall<Problem> in operation.h adds the problem.
class PendingCall {
 public:
  virtual ~PendingCall() = default;
  /// Computes on a thread of the pool, or on one that waits for a device; touches no JavaScript.
  virtual Status compute() = 0;

 protected:
  /// In memory of the request; null when the caller cannot abort.
  volatile int32_t* abort_ = nullptr;

 private:
  friend class Environment;
  enum class Phase { queued, running, abandoned };

  std::atomic<Phase> phase_{Phase::queued};
  Environment* environment_ = nullptr;
  napi_ref request_ = nullptr;  // keeps the arrays alive
  napi_deferred deferred_ = nullptr;
  Status status_;
  PendingCall* previous_ = nullptr;
  PendingCall* next_ = nullptr;
};

/// What an environment uses of devices. Members end in the right order: threads, memory, sessions.
struct EnvironmentDevices {
  DeviceSessions sessions;
  DeviceMemories memories;
  DeviceThreads threads;
};

/// Which threads run an asynchronous call.
enum class RunsOn { pool, device_threads };

class Environment {
 public:
  /// Makes the environment's instance when the addon is loaded into it; false with a pending
  /// exception when that fails.
  static bool attach(napi_env env);
  /// Null when Node-API fails.
  static Environment* of(napi_env env);

  /// Queues the call, which now belongs to the environment, and returns its promise; nullptr with
  /// a pending exception when that fails.
  napi_value start(PendingCall* call, napi_value request, RunsOn threads);

  EnvironmentDevices& devices() { return devices_; }

  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  explicit Environment(napi_env env) : env_(env) {}
  ~Environment() = default;

  static void run_on_thread(void* data);
  static void settle_on_javascript_thread(napi_env env, napi_value, void* context, void* data);
  static void clean_up(void* data);

  void link(PendingCall* call);
  void unlink(PendingCall* call);
  void settle(PendingCall* call);

  bool post(PendingCall* call, RunsOn threads);

  napi_env env_;
  napi_threadsafe_function report_ = nullptr;
  PendingCall* calls_ = nullptr;  // JavaScript thread only

  std::mutex mutex_;
  std::condition_variable all_finished_;
  int64_t unfinished_ = 0;  // calls that another thread may still touch; guarded by mutex_

  EnvironmentDevices devices_;
};

}  // namespace binding
}  // namespace cluster_attention
