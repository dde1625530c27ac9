#pragma once

// Dynamic shared memory. A kernel's parts are laid out by a function of the sizes alone, which the
// launcher calls for the number of bytes and the kernel for the places:
//
//   struct Layout { int64_t keys, sums, bytes; };
//   CA_HOST_DEVICE inline Layout layout(int dim) {
//     SharedLayout parts;
//     const int64_t keys = parts.add<float>(32 * dim);
//     const int64_t sums = parts.add<float>(32);
//     return {keys, sums, parts.bytes()};
//   }
//   float* keys = dynamic_shared<float>(layout(dim).keys);

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// Offsets of arrays that follow each other, each aligned to 16 bytes.
class SharedLayout {
 public:
  /// Offset in bytes of `count` elements.
  template <typename T>
  CA_HOST_DEVICE int64_t add(int64_t count) {
    const int64_t offset = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return offset;
  }
  CA_HOST_DEVICE int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

/// The block's dynamic shared memory from byte `offset` on.
template <typename T>
__device__ inline T* dynamic_shared(int64_t offset = 0) {
#if defined(CA_CUDA_MODEL)
  return reinterpret_cast<T*>(cuda_model::shared_memory() + offset);
#else
  extern __shared__ __align__(16) unsigned char ca_dynamic_shared_memory[];
  return reinterpret_cast<T*>(ca_dynamic_shared_memory + offset);
#endif
}

/// Whether the launch gave the block so many bytes. Where every GPU has room for what a kernel
/// likes best (from sm_80 on), its launcher asks for that, and this is no question.
__device__ inline bool holds_shared_bytes(int64_t bytes) {
#if defined(CA_CUDA_MODEL)
  return static_cast<int64_t>(cuda_model::shared_memory_bytes()) >= bytes;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  uint32_t given;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(given));
  return given >= bytes;
#else
  return true;
#endif
}

/// Of tiles that come in while others are used (Sizes::layout(warps, buffers)): all buffers where
/// they fit, else one. Any number gives the same bits.
template <typename Sizes>
__device__ int buffers_of_block(int warps) {
  return holds_shared_bytes(Sizes::layout(warps, Sizes::kBuffers).bytes) ? Sizes::kBuffers : 1;
}

}  // namespace cluster_attention::cuda
