#include "test/native/guarded_memory.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "test/native/harness.h"

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace cluster_attention::test {

namespace {

Guard chosen = Guard::none;

}  // namespace

void set_guard(Guard guard) { chosen = guard; }
Guard guard() { return chosen; }

#if defined(__unix__)

GuardedMemory::GuardedMemory(size_t bytes, Guard side) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = (bytes + page - 1) / page * page;
  mapped_ = used + 2 * page;
  void* memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    std::exit(1);
  }
  mapping_ = static_cast<unsigned char*>(memory);
  if (used > 0 && mprotect(mapping_ + page, used, PROT_READ | PROT_WRITE) != 0) {
    std::perror("mprotect");
    std::exit(1);
  }
  data_ = mapping_ + page + (side == Guard::end ? used - bytes : 0);
}

GuardedMemory::~GuardedMemory() { munmap(mapping_, mapped_); }

void report_touched_guards() {
  // Not safe in general from a handler; but the alternative is to end without a word.
  std::signal(SIGSEGV, [](int) {
    fail(__FILE__, __LINE__, "memory outside of an array was touched");
    std::fflush(stdout);
    _exit(1);
  });
}

#else

GuardedMemory::GuardedMemory(size_t bytes, Guard)
    : mapping_(static_cast<unsigned char*>(std::malloc(bytes + 1))),
      mapped_(bytes),
      data_(mapping_) {}
GuardedMemory::~GuardedMemory() { std::free(mapping_); }
void report_touched_guards() {}

#endif

}  // namespace cluster_attention::test
