#include "test/cuda/model/fiber.h"

#include <sys/mman.h>

#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_model {

namespace {

thread_local Fiber* running = nullptr;

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
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
}

void Fiber::prepare() {
  // As cuda_model_switch leaves a stack: six registers, then where to return to; aligned as at the
  // entry of a function.
  auto* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack_) + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  inside_ = top;
}

void Fiber::resume() {
  running = this;
  cuda_model_switch(&outside_, inside_);
}

void Fiber::pause() { cuda_model_switch(&inside_, outside_); }

#else

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
  delete static_cast<ucontext_t*>(inside_);
  delete static_cast<ucontext_t*>(outside_);
}

void Fiber::prepare() {
  if (inside_ == nullptr) inside_ = new ucontext_t;
  if (outside_ == nullptr) outside_ = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(inside_);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::enter, 0);
}

void Fiber::resume() {
  running = this;
  swapcontext(static_cast<ucontext_t*>(outside_), static_cast<ucontext_t*>(inside_));
}

void Fiber::pause() {
  swapcontext(static_cast<ucontext_t*>(inside_), static_cast<ucontext_t*>(outside_));
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
  done_ = false;
  prepare();
  return true;
}

void Fiber::enter() {
  Fiber* self = running;
  self->function_(self->argument_);
  self->done_ = true;
  self->pause();  // never comes back
}

}  // namespace cuda_model
