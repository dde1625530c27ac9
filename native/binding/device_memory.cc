#include "native/binding/device_memory.h"

#include <cstdlib>
#include <new>

namespace cluster_attention {
namespace binding {

void DeviceMemory::let_go() {
  if (owners.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  sessions->release(device, data);
  delete this;
}

Status DeviceMemories::add(DeviceSessions& sessions, int32_t device, DeviceType type,
                           int64_t elements, int64_t* number) {
  if (2 * count_ >= capacity_ && !grow()) return Status::out_of_memory();
  auto* memory = new (std::nothrow) DeviceMemory();
  if (memory == nullptr) return Status::out_of_memory();
  memory->sessions = &sessions;
  memory->device = device;
  memory->type = type;
  memory->elements = elements;
  const Status status = sessions.allocate(device, memory->bytes(), &memory->data);
  if (!status.ok()) {
    delete memory;
    return status;
  }
  // A number whose place is taken is skipped: at most every other place is.
  do {
    ++last_number_;
  } while (places_[last_number_ & (capacity_ - 1)].memory != nullptr);
  places_[last_number_ & (capacity_ - 1)] = {memory, last_number_};
  ++count_;
  *number = last_number_;
  return status;
}

DeviceMemory* DeviceMemories::find(int64_t number) const {
  if (capacity_ == 0) return nullptr;
  const Place& place = places_[number & (capacity_ - 1)];
  return place.memory != nullptr && place.number == number ? place.memory : nullptr;
}

int64_t DeviceMemories::remove(int64_t number) {
  DeviceMemory* memory = find(number);
  if (memory == nullptr) return 0;
  const int64_t bytes = memory->bytes();
  places_[number & (capacity_ - 1)].memory = nullptr;
  --count_;
  memory->let_go();
  return bytes;
}

void DeviceMemories::clear() {
  for (int64_t i = 0; i < capacity_; ++i) {
    if (places_[i].memory != nullptr) places_[i].memory->let_go();
  }
  std::free(places_);
  places_ = nullptr;
  capacity_ = count_ = 0;
}

// Numbers that had places of their own keep them apart in a table of twice the size.
bool DeviceMemories::grow() {
  const int64_t capacity = capacity_ == 0 ? 64 : 2 * capacity_;
  auto* places = static_cast<Place*>(std::calloc(static_cast<size_t>(capacity), sizeof(Place)));
  if (places == nullptr) return false;
  for (int64_t i = 0; i < capacity_; ++i) {
    if (places_[i].memory != nullptr) places[places_[i].number & (capacity - 1)] = places_[i];
  }
  std::free(places_);
  places_ = places;
  capacity_ = capacity;
  return true;
}

}  // namespace binding
}  // namespace cluster_attention
