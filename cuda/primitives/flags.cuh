#pragma once

// What kernels tell the host, read by the session's finish(); and how blocks of a launch meet.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// Index arrays in the order in which the CPU kernels check them.
enum class IndexArgument : uint32_t { labels, indices, neighbors };
enum class IndexFault : uint32_t { out_of_range, duplicate };

/// In device memory; all bits are set as long as nothing happened.
struct Flags {
  unsigned long long fault;  // argument (8 bits), index (48), IndexFault (8): the least one
  uint32_t finite;           // 0 once a result was NaN or Inf
  uint32_t settled;          // ~0, and one more for each sequence whose k-means has settled
};

constexpr unsigned long long kNoFault = ~0ull;

CA_HOST_DEVICE inline unsigned long long encode_fault(IndexFault code, IndexArgument argument,
                                                      int64_t index) {
  return static_cast<unsigned long long>(argument) << 56 |
         static_cast<unsigned long long>(index) << 8 | static_cast<unsigned long long>(code);
}

/// Any number of threads may at the same time, so that the store is an atomic one.
__device__ inline void mark_non_finite(Flags* flags) {
#if defined(CA_CUDA_MODEL)
  cuda_model::replace(&flags->finite, uint32_t{0});
#else
  asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(&flags->finite), "r"(0) : "memory");
#endif
}

/// Of several faults the one of the first argument, there the one of the lowest index is kept.
__device__ inline void mark_fault(Flags* flags, IndexFault code, IndexArgument argument,
                                  int64_t index) {
  atomicMin(&flags->fault, encode_fault(code, argument, index));
}

/// What this thread has seen and written, and what threads had that it met at a barrier of the
/// block, is seen by whoever sees what it writes later; cheaper than __threadfence(), which also
/// puts all fences of the device in one order.
__device__ inline void fence_device() {
#if defined(CA_CUDA_MODEL)
  __threadfence();
#else
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

/// The same for whoever is in the block.
__device__ inline void fence_block() {
#if !defined(CA_CUDA_MODEL)
  asm volatile("fence.acq_rel.cta;" ::: "memory");
#endif
}

/// True for all threads of the block that calls this last of `blocks`: it then sees what the
/// others wrote to device memory before. `ticket` is 0 before the launch and after; `scratch` is
/// one word of shared memory.
__device__ inline bool last_block_done(uint32_t* ticket, uint32_t blocks, uint32_t* scratch) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    fence_device();
    *scratch = atomicInc(ticket, blocks - 1);
    fence_device();
  }
  __syncthreads();
  const bool last = *scratch == blocks - 1;
  __syncthreads();
  return last;
}

}  // namespace cluster_attention::cuda
