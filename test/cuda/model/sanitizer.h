#pragma once

// What sanitizers must be told of the model. AddressSanitizer: of the stacks that threads have, and
// of memory that a kernel must not touch. ThreadSanitizer: which thread runs, and what orders what
// threads do. The model itself is then compiled without it, so that it sees the accesses of kernels
// alone, and those that are noted here. Nothing happens where there is no sanitizer.

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CA_MODEL_WATCHES_RACES)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_read_range(void* begin, unsigned long bytes);
void __tsan_write_range(void* begin, unsigned long bytes);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace cuda_model {

struct Stack {
  const void* begin = nullptr;
  size_t bytes = 0;
};

#if defined(__SANITIZE_ADDRESS__)

/// Around a change to another stack: what comes after it is back on this one.
class StackChange {
 public:
  explicit StackChange(const Stack& to) {
    __sanitizer_start_switch_fiber(&frames_, to.begin, to.bytes);
  }
  ~StackChange() { __sanitizer_finish_switch_fiber(frames_, nullptr, nullptr); }
  StackChange(const StackChange&) = delete;
  StackChange& operator=(const StackChange&) = delete;

 private:
  void* frames_ = nullptr;
};

/// The first thing on a stack that has been changed to.
inline void begin_on_stack() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }

/// Of the thread that runs, outside of all fibers.
inline Stack stack_of_thread() {
  static thread_local const Stack kStack = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &begin, &bytes);
    pthread_attr_destroy(&attributes);
    return Stack{begin, bytes};
  }();
  return kStack;
}

/// Memory that nobody may touch, until it is allowed.
inline void forbid(const void* begin, size_t bytes) { ASAN_POISON_MEMORY_REGION(begin, bytes); }
inline void allow(const void* begin, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(begin, bytes); }

#else

class StackChange {
 public:
  explicit StackChange(const Stack&) {}
};
inline void begin_on_stack() {}
inline Stack stack_of_thread() { return {}; }
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}

#endif

#if defined(CA_MODEL_WATCHES_RACES)

/// Threads at a time; and what it tells apart of a grid: clusters of so many threads together, as a
/// barrier costs the square of their number.
constexpr size_t kMostWatched = 4096;
constexpr size_t kMostApart = 256;

/// A thread as the sanitizer knows it, of which there may be some thousands; nullptr: one that it
/// does not tell from the thread that runs all.
using Watched = void*;
inline Watched watch_thread() { return __tsan_create_fiber(0); }
inline void forget_thread(Watched thread) { __tsan_destroy_fiber(thread); }
inline Watched watched_thread() { return __tsan_get_current_fiber(); }
/// To change from one to another orders nothing.
inline void switch_to(Watched thread) {
  if (thread != nullptr) __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
}

/// What a thread has done before it publishes at a place is before what another does after it has
/// observed the place.
inline void publish(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void observe(const void* place) { __tsan_acquire(const_cast<void*>(place)); }

inline void note_read(const void* begin, size_t bytes) {
  __tsan_read_range(const_cast<void*>(begin), bytes);
}
inline void note_write(const void* begin, size_t bytes) {
  __tsan_write_range(const_cast<void*>(begin), bytes);
}

/// What is done meanwhile is no access of a kernel.
class Unwatched {
 public:
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

#else

constexpr size_t kMostWatched = 0;
constexpr size_t kMostApart = 0;
using Watched = void*;
inline Watched watch_thread() { return nullptr; }
inline void forget_thread(Watched) {}
inline Watched watched_thread() { return nullptr; }
inline void switch_to(Watched) {}
inline void publish(const void*) {}
inline void observe(const void*) {}
inline void note_read(const void*, size_t) {}
inline void note_write(const void*, size_t) {}
class Unwatched {
 public:
  Unwatched() {}
};

#endif

}  // namespace cuda_model
