#include "test/cuda/model/fiber.h"

#include <sys/mman.h>

#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_model {

namespace {

constexpr uintptr_t kPlaces = 61;
constexpr uintptr_t kPlaceBytes = 1088;  // 17 cache lines

Fiber* running = nullptr;
#if defined(__x86_64__)
void* outside = nullptr;  // stack pointer of the caller of resume()
#else
ucontext_t outside;  // of the caller of resume()
#endif
Stack outside_stack;
Watched outside_watched;
size_t watched_fibers = 0;

}  // namespace

#if defined(__x86_64__)

// swapcontext() makes two system calls; a warp's product alone would need 64 of them.
extern "C" __attribute__((visibility("hidden"))) void cuda_model_switch(void** save, void* load);
asm(R"(
.text
.hidden cuda_model_switch
.globl cuda_model_switch
.type cuda_model_switch, @function
cuda_model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_model_switch, . - cuda_model_switch
)");

Fiber::~Fiber() {
  watch(false);
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
}

void Fiber::prepare() {
  // As cuda_model_switch leaves a stack: six registers, then where to return to; aligned as at the
  // entry of a function.
  // Stacks that all began at the same place of a page would push each other out of the caches.
  const uintptr_t number = reinterpret_cast<uintptr_t>(stack_) / kStackBytes;
  char* const begin = static_cast<char*>(stack_) + kStackBytes - number % kPlaces * kPlaceBytes;
  if (inside_ != nullptr) {  // frames of who did not end
    allow(inside_, static_cast<size_t>(begin - static_cast<char*>(inside_)));
  }
  auto* top = reinterpret_cast<uintptr_t*>(begin);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  inside_ = top;
}

void Fiber::resume() {
  const StackChange change(stack());
  outside_stack = stack_of_thread();
  outside_watched = watched_thread();
  running = this;
  switch_to(watched_);
  cuda_model_switch(&outside, inside_);
}

void Fiber::pause() {
  const StackChange change(outside_stack);
  switch_to(outside_watched);
  cuda_model_switch(&inside_, outside);
}

void Fiber::hand_over(Fiber& other) {
  const StackChange change(other.stack());
  running = &other;
  switch_to(other.watched_);
  cuda_model_switch(&inside_, other.inside_);
}

#else

Fiber::~Fiber() {
  watch(false);
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
  delete static_cast<ucontext_t*>(inside_);
}

void Fiber::prepare() {
  if (inside_ == nullptr) inside_ = new ucontext_t;
  allow(stack_, kStackBytes);  // frames of who did not end
  auto* context = static_cast<ucontext_t*>(inside_);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::enter, 0);
}

void Fiber::resume() {
  const StackChange change(stack());
  outside_stack = stack_of_thread();
  outside_watched = watched_thread();
  running = this;
  switch_to(watched_);
  swapcontext(&outside, static_cast<ucontext_t*>(inside_));
}

void Fiber::pause() {
  const StackChange change(outside_stack);
  switch_to(outside_watched);
  swapcontext(static_cast<ucontext_t*>(inside_), &outside);
}

void Fiber::hand_over(Fiber& other) {
  const StackChange change(other.stack());
  running = &other;
  switch_to(other.watched_);
  swapcontext(static_cast<ucontext_t*>(inside_), static_cast<ucontext_t*>(other.inside_));
}

#endif

bool Fiber::start(void (*function)(void*), void* argument) {
  if (stack_ == nullptr) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    stack_ = memory;
  }
  function_ = function;
  argument_ = argument;
  prepare();
  return true;
}

void Fiber::watch(bool watched) {
  if (watched == (watched_ != nullptr)) return;
  if (watched_ != nullptr) forget_thread(watched_);
  watched_ = watched ? watch_thread() : nullptr;
  watched_fibers += watched_ != nullptr ? 1 : size_t{0} - 1;
}

size_t Fiber::count_watched() { return watched_fibers; }

Stack Fiber::stack() const { return {stack_, kStackBytes}; }

void Fiber::enter() {
  begin_on_stack();
  Fiber* self = running;
  self->function_(self->argument_);
  self->pause();  // never comes back
}

}  // namespace cuda_model
