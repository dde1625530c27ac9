#pragma once

// Clusters: blocks that run at the same time, wait for each other, and read each other's shared
// memory (compute capability 9.0). A launch asks for them by LaunchShape::cluster. Elsewhere a
// cluster is one block.

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// Place of this block in its cluster.
__device__ inline int cluster_rank() {
#if defined(CA_CUDA_MODEL)
  return cuda_model::cluster_rank();
#elif __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}

/// Every thread of every block of the cluster calls it; what each wrote to the shared memory of its
/// own block before is seen by all after it. Nothing is said of device memory, nor of writes to
/// another block's: the barrier's own release would wait for both, on the whole GPU, which takes
/// longer than all else here. Shared memory has no copies, so that what is done in the block is
/// done. No block may end while others read its shared memory: the last thing they do together is
/// this.
__device__ inline void sync_cluster() {
#if defined(CA_CUDA_MODEL)
  cuda_model::sync_cluster();
#elif __CUDA_ARCH__ >= 900
  __syncwarp();  // the lanes of a warp arrive together
  asm volatile("fence.acq_rel.cta;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

/// The same, and what they wrote to device memory is seen as well.
__device__ inline void sync_cluster_and_memory() {
#if defined(CA_CUDA_MODEL)
  cuda_model::sync_cluster();
#elif __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

/// The place in block `rank` of the cluster that `own` is in this one, to read; `own` is in shared
/// memory.
template <typename T>
__device__ inline const T* in_block(const T* own, int rank) {
#if defined(CA_CUDA_MODEL)
  const auto* place = reinterpret_cast<const unsigned char*>(own);
  return reinterpret_cast<const T*>(cuda_model::shared_memory_of(rank) +
                                    (place - cuda_model::shared_memory()));
#elif __CUDA_ARCH__ >= 900
  uint64_t place;
  asm volatile("mapa.u64 %0, %1, %2;"
               : "=l"(place)
               : "l"(reinterpret_cast<uint64_t>(own)), "r"(rank));
  return reinterpret_cast<const T*>(place);
#else
  return own;
#endif
}

/// What is added to an address in the shared memory of a cluster to make it a generic one, as which
/// it is read. It comes from a special register, which takes long: to be asked for once.
__device__ inline uint64_t cluster_window() {
  uint64_t window = 0;
#if !defined(CA_CUDA_MODEL) && __CUDA_ARCH__ >= 900
  asm volatile("cvta.shared::cluster.u64 %0, %1;" : "=l"(window) : "l"(uint64_t{0}));
#endif
  return window;
}

/// in_block(own, rank)[0] as it is now: no earlier read of the place has left it in a cache.
__device__ inline uint32_t load_in_block([[maybe_unused]] uint64_t window, const uint32_t* own,
                                         int rank) {
#if !defined(CA_CUDA_MODEL) && __CUDA_ARCH__ >= 900
  uint32_t value;
  asm volatile(
      "{\n"
      ".reg .u32 place;\n"
      ".reg .u64 generic;\n"
      "mapa.shared::cluster.u32 place, %1, %2;\n"
      "cvt.u64.u32 generic, place;\n"
      "add.u64 generic, generic, %3;\n"
      "ld.relaxed.cluster.u32 %0, [generic];\n"
      "}\n"
      : "=r"(value)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(own))), "r"(rank), "l"(window)
      : "memory");
  return value;
#else
  return *in_block(own, rank);
#endif
}

}  // namespace cluster_attention::cuda
