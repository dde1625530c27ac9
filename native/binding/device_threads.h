#pragma once

// Threads of one environment that wait for devices: a call that runs on a GPU keeps one of them for
// its whole length, and none of the pool's, which compute. Two, so that one call's copies overlap
// with another's kernels. They start with the first such call and end with the environment.

#include <condition_variable>
#include <mutex>
#include <thread>

namespace cluster_attention {
namespace binding {

class DeviceThreads {
 public:
  DeviceThreads() = default;
  ~DeviceThreads() { stop(); }
  DeviceThreads(const DeviceThreads&) = delete;
  DeviceThreads& operator=(const DeviceThreads&) = delete;

  /// Queues a call. False when no thread can be started for it.
  bool post(void (*function)(void*), void* context);
  /// Runs what is queued, then ends the threads.
  void stop();

 private:
  struct Work {
    void (*function)(void*);
    void* context;
    Work* next;
  };
  static constexpr int kThreads = 2;

  void main_loop();
  bool start_thread();

  std::mutex lock_;
  std::condition_variable arrived_;
  std::thread threads_[kThreads];
  int started_ = 0;
  int idle_ = 0;
  int waiting_ = 0;  // calls in the queue
  bool stopping_ = false;
  Work* first_ = nullptr;
  Work* last_ = nullptr;
};

}  // namespace binding
}  // namespace cluster_attention
