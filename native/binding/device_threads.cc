#include "native/binding/device_threads.h"

#include <new>
#include <system_error>

#include "native/core/wait.h"

namespace cluster_attention {
namespace binding {

bool DeviceThreads::post(void (*function)(void*), void* context) {
  Work* work = new (std::nothrow) Work{function, context, nullptr};
  if (work == nullptr) return false;
  const std::lock_guard<std::mutex> guard(lock_);
  if (waiting_ >= idle_ && started_ < kThreads) start_thread();
  if (started_ == 0) {
    delete work;
    return false;
  }
  (last_ != nullptr ? last_->next : first_) = work;
  last_ = work;
  ++waiting_;
  arrived_.notify_one();
  return true;
}

void DeviceThreads::stop() {
  {
    const std::lock_guard<std::mutex> guard(lock_);
    stopping_ = true;
    arrived_.notify_all();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void DeviceThreads::main_loop() {
  std::unique_lock<std::mutex> guard(lock_);
  for (;;) {
    if (first_ != nullptr) {
      Work* work = first_;
      first_ = work->next;
      if (first_ == nullptr) last_ = nullptr;
      --waiting_;
      guard.unlock();
      work->function(work->context);
      delete work;
      guard.lock();
    } else if (stopping_) {
      return;
    } else {
      ++idle_;
      wait(arrived_, guard);
      --idle_;
    }
  }
}

bool DeviceThreads::start_thread() {
  // std::thread reports failure by an exception; it ends here.
  try {
    threads_[started_] = std::thread([this] { main_loop(); });
  } catch (const std::system_error&) {
    return false;
  } catch (const std::bad_alloc&) {
    return false;
  }
  ++started_;
  return true;
}

}  // namespace binding
}  // namespace cluster_attention
