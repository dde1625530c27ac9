#pragma once

// Barriers in shared memory that copies and warps arrive at: sm_90. A barrier has phases 0, 1, 0,
// ...; wait_for(barrier, parity) returns when the phase of that parity is over, so that a barrier
// that nobody has arrived at lets wait_for(barrier, 1) through.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

#if defined(CA_CUDA_MODEL)

using cuda_model::arrive;
using cuda_model::initialize_barrier;
using cuda_model::shared_address;
using cuda_model::wait_for;
__device__ inline void publish_to_tensor_cores() {}
/// A barrier of `threads` threads of the block, by its name (1 .. 15).
__device__ inline void sync_threads(int name, int threads) {
  cuda_model::sync_named(name, threads);
}

#else

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// By one thread, before a fence and a barrier of the block.
__device__ inline void initialize_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

__device__ inline void wait_for(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// What this thread has written to shared memory is then seen by tensor cores that read it there.
__device__ inline void publish_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// A barrier of `threads` threads of the block, by its name (1 .. 15).
__device__ inline void sync_threads(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

#endif

}  // namespace cluster_attention::cuda
