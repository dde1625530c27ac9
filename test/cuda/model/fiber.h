#pragma once

// A function with a stack of its own, which can stop in the middle and go on later: one thread of a
// block. Everything runs on the thread of the caller, of which there is one at a time.

#include <cstddef>

#include "test/cuda/model/sanitizer.h"

namespace cuda_model {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes the next resume() call function(argument); what ran before is forgotten. False when
  /// there is no memory for the stack.
  bool start(void (*function)(void*), void* argument);
  /// Whether a sanitizer that looks for races tells it from others.
  void watch(bool watched);
  /// That it tells from others.
  static size_t count_watched();
  /// Runs until the next pause(), or the end of the function, of this fiber or one that goes on in
  /// its place.
  void resume();
  /// Called inside: back to resume().
  void pause();
  /// Called inside: `other` goes on in the place of this one.
  void hand_over(Fiber& other);

 private:
  static constexpr size_t kStackBytes = size_t{256} << 10;  // mapped, touched only where used

  static void enter();
  void prepare();
  Stack stack() const;

  void* stack_ = nullptr;
  void* inside_ = nullptr;  // stack pointer or context while it does not run
  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  Watched watched_ = nullptr;
};

}  // namespace cuda_model
