#pragma once

// What one environment (the main thread or a Worker) keeps on devices: sessions, each a stream with
// its workspace, one for every thread that is at work at the same time. A call takes one and gives
// it back; they are closed when the environment goes away.

#include <cstdint>
#include <mutex>

#include "cuda/backend.h"
#include "native/core/status.h"

namespace cluster_attention {

class DeviceSessions {
 public:
  DeviceSessions() = default;
  ~DeviceSessions() { close(); }
  DeviceSessions(const DeviceSessions&) = delete;
  DeviceSessions& operator=(const DeviceSessions&) = delete;

  /// A session for this thread alone until give_back(). Starts CUDA and its device when needed.
  Status take(int32_t device, cuda::Session** session);
  /// `status` is what came of its use: after out_of_memory the sessions that idle are closed too,
  /// so that the next call finds their workspaces free.
  void give_back(cuda::Session* session, const Status& status);

  /// Memory that outlives the call: of a DeviceTensor.
  Status allocate(int32_t device, int64_t bytes, void** memory);
  /// Gives memory back that no call uses any more. Any thread, at any time before close().
  void release(int32_t device, void* memory);

  /// Closes all sessions. None may be taken.
  void close();

 private:
  struct Entry {
    int32_t device;
    cuda::Session* session;
    bool taken;
    Entry* next;
  };

  Entry* find_idle(int32_t device);
  void close_idle(int32_t device);

  std::mutex lock_;
  Entry* entries_ = nullptr;
};

/// A session taken for the length of a scope.
class SessionLease {
 public:
  SessionLease(DeviceSessions& sessions, int32_t device) : sessions_(sessions) {
    status_ = sessions.take(device, &session_);
  }
  ~SessionLease() {
    if (session_ != nullptr) sessions_.give_back(session_, status_);
  }
  SessionLease(const SessionLease&) = delete;
  SessionLease& operator=(const SessionLease&) = delete;

  const Status& status() const { return status_; }
  cuda::Session* session() const { return session_; }
  /// Says what came of the session's use; returns it.
  Status conclude(const Status& status) { return status_ = status; }

 private:
  DeviceSessions& sessions_;
  cuda::Session* session_ = nullptr;
  Status status_;
};

}  // namespace cluster_attention
