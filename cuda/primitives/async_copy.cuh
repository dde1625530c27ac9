#pragma once

// Copies from device memory to shared memory that pass no register: cp.async. Without it (sm_75)
// they are plain copies, done at once.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// 16 bytes, both places aligned to 16. With `valid` false, zeros are written and nothing is read.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
#if defined(CA_CUDA_MODEL)
  cuda_model::copy_async(shared, global, 16, valid);
#elif __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  const uint4 zero = make_uint4(0, 0, 0, 0);
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : zero;
#endif
}

/// The 128 bytes around a place of device memory on their way to the L2 cache.
__device__ inline void prefetch_l2(const void* global) {
#if defined(CA_CUDA_MODEL)
  (void)global;
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#endif
}

/// Closes the group of this thread's copies since the last one.
__device__ inline void commit_copies() {
#if defined(CA_CUDA_MODEL)
  cuda_model::commit_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until all but the last `kGroups` groups of this thread have arrived. What other threads
/// copied is seen after a __syncthreads() besides.
template <int kGroups>
__device__ inline void wait_copies() {
#if defined(CA_CUDA_MODEL)
  cuda_model::wait_copies(kGroups);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace cluster_attention::cuda
