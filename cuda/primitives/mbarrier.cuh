#pragma once

// Barriers in shared memory that copies and warps arrive at: sm_90. A barrier has phases 0, 1, 0,
// ...; wait_for(barrier, parity) returns when the phase of that parity is over, so that a barrier
// that nobody has arrived at lets wait_for(barrier, 1) through. A phase is over when all have
// arrived, and when the bytes that they expect have.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

#if defined(CA_CUDA_MODEL)

using cuda_model::arrive;
using cuda_model::arrive_expecting;
using cuda_model::initialize_barrier;
using cuda_model::invalidate_barrier;
using cuda_model::shared_address;
using cuda_model::store_in_block;
using cuda_model::wait_for;
__device__ inline void wait_for_blocks(uint64_t* barrier, uint32_t parity) {
  wait_for(barrier, parity);
}
__device__ inline void publish_barriers() {}
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

/// By one thread, before its memory is used for something else.
__device__ inline void invalidate_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// This thread arrives, and stores of so many bytes shall.
__device__ inline void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// The barriers that this thread has initialized are then seen by the other blocks of the cluster,
/// after a barrier of it.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// The address of the same place in another block of the cluster.
__device__ inline uint32_t address_in_block(const void* own, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(own)), "r"(rank));
  return address;
}

/// Stores 4, 8 or 16 bytes in another block; its copy of `barrier` counts them when they have
/// arrived.
__device__ inline void store_in_block(uint4* own, int rank, uint4 value, uint64_t* barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1,%2,%3,%4}, "
      "[%5];" ::"r"(address_in_block(own, rank)),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(address_in_block(barrier, rank))
      : "memory");
}
template <typename T>
__device__ void store_in_block(T* own, int rank, T value, uint64_t* barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what one store takes");
  const uint32_t to = address_in_block(own, rank);
  const uint32_t counter = address_in_block(barrier, rank);
  if constexpr (sizeof(T) == 4) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
        "r"(static_cast<uint32_t>(value)), "r"(counter)
        : "memory");
  } else {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(to),
        "l"(static_cast<uint64_t>(value)), "r"(counter)
        : "memory");
  }
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

/// The same, for what other blocks of the cluster have done before their stores that `barrier`
/// counts.
__device__ inline void wait_for_blocks(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
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
