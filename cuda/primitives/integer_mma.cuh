#pragma once

// Products of bytes, 0 to 255, on tensor cores, summed in int32: exact. A warp multiplies A (16,32)
// by B (32,8). With group = lane / 4 and four = 4 (lane % 4), each register holds four bytes, the
// first in the lowest:
//
//   a[0]: A[group][four..]      a[1]: the same of row group + 8
//   a[2]: A[group][four+16..]   a[3]: the same of row group + 8
//   b[0]: B[four..][group]      b[1]: B[four+16..][group]
//   d[0], d[1]: D[group][2 (lane % 4) + 0, 1]     d[2], d[3]: the same of row group + 8

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

/// d = a b.
__device__ inline void mma_u8_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
#if defined(CA_CUDA_MODEL)
  cuda_model::mma_u8_16x8x32(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(0));
#else
  // Turing multiplies (8,16) by (16,8): quarters of A and halves of B lie as those operands do.
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.u8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d[i % 2 * 2]), "+r"(d[i % 2 * 2 + 1])
                 : "r"(a[i]), "r"(b[i / 2]));
  }
#endif
}

}  // namespace cluster_attention::cuda
