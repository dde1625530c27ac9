#pragma once

// Memory that ends, or begins, at a page which nothing may touch: one byte too far ends the run
// there and then, whoever wrote the access and whatever instruction set it uses.

#include <cstddef>

namespace cluster_attention::test {

enum class Guard { none, begin, end };

/// Where the arrays of all fixtures lie from now on.
void set_guard(Guard guard);
Guard guard();

/// `bytes` bytes that the guard page touches on one side; the other side has one a little further.
class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, Guard side);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  unsigned char* data() { return data_; }

 private:
  unsigned char* mapping_;
  size_t mapped_;
  unsigned char* data_;
};

/// Lets a touched guard page say which test has touched it; the process then ends with code 1.
void report_touched_guards();

}  // namespace cluster_attention::test
