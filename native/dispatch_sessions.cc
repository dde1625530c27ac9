#include "native/dispatch_sessions.h"

#include <new>

#include "native/dispatch_backend.h"

namespace cluster_attention {

Status DeviceSessions::take(int32_t device, cuda::Session** session) {
  *session = nullptr;
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (Entry* idle = find_idle(device)) {
      idle->taken = true;
      *session = idle->session;
      return Status::success();
    }
  }
  CA_RETURN_IF_ERROR(device_status(device));
  Entry* entry = new (std::nothrow) Entry{device, nullptr, true, nullptr};
  if (entry == nullptr) return Status::out_of_memory();
  const Status opened = backend_library().backend->open_session(device, &entry->session);
  if (!opened.ok()) {
    delete entry;
    return opened;
  }
  *session = entry->session;
  const std::lock_guard<std::mutex> guard(lock_);
  entry->next = entries_;
  entries_ = entry;
  return Status::success();
}

void DeviceSessions::give_back(cuda::Session* session, const Status& status) {
  const std::lock_guard<std::mutex> guard(lock_);
  Entry* entry = entries_;
  while (entry->session != session) entry = entry->next;
  if (status.code == StatusCode::out_of_memory) close_idle(entry->device);
  entry->taken = false;
}

Status DeviceSessions::allocate(int32_t device, int64_t bytes, void** memory) {
  *memory = nullptr;
  SessionLease lease(*this, device);
  if (!lease.status().ok()) return lease.status();
  const cuda::Backend& backend = *backend_library().backend;
  return lease.conclude(backend.allocate(lease.session(), bytes, memory));
}

void DeviceSessions::release(int32_t device, void* memory) {
  const std::lock_guard<std::mutex> guard(lock_);
  for (Entry* entry = entries_; entry != nullptr; entry = entry->next) {
    if (entry->device != device) continue;
    backend_library().backend->release(entry->session, memory);
    return;
  }
}

void DeviceSessions::close() {
  const std::lock_guard<std::mutex> guard(lock_);
  while (entries_ != nullptr) {
    Entry* entry = entries_;
    entries_ = entry->next;
    backend_library().backend->close_session(entry->session);
    delete entry;
  }
}

DeviceSessions::Entry* DeviceSessions::find_idle(int32_t device) {
  for (Entry* entry = entries_; entry != nullptr; entry = entry->next) {
    if (entry->device == device && !entry->taken) return entry;
  }
  return nullptr;
}

// The session that met the fault is still taken: one is left for release().
void DeviceSessions::close_idle(int32_t device) {
  for (Entry** link = &entries_; *link != nullptr;) {
    Entry* entry = *link;
    if (entry->taken || entry->device != device) {
      link = &entry->next;
      continue;
    }
    *link = entry->next;
    backend_library().backend->close_session(entry->session);
    delete entry;
  }
}

}  // namespace cluster_attention
