#pragma once

// Waiting on a condition. GCC 12 binds std::condition_variable::wait to a symbol that is newer than
// the libstdc++ of systems on which Node runs well, and wait_for to one of a newer C library; the
// form with a time of the system's clock needs neither.

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace cluster_attention {

/// Returns when the condition was notified, or sometimes for no reason: the caller looks again.
inline void wait(std::condition_variable& condition, std::unique_lock<std::mutex>& lock) {
  condition.wait_until(lock, std::chrono::system_clock::now() + std::chrono::hours(1));
}

}  // namespace cluster_attention
