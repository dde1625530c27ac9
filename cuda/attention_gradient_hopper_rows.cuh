#pragma once

// Of the backward of exact attention on Hopper (attention_gradient_hopper.cuh): how the 64 rows
// that a warpgroup owns come from device memory, and their sums go back there.

#include "cuda/operands.h"
#include "cuda/primitives/warp.cuh"
#include "cuda/primitives/wgmma.cuh"

namespace cluster_attention::cuda {

#if CA_HAS_WARPGROUP_PRODUCTS

struct OwnRows {
  static constexpr int kCount = 64;

  int64_t batch;
  int64_t head;
  int64_t begin;
  int64_t end;  // of the real ones

  /// This thread's row `half` of the 64.
  __device__ static int row(int half) {
    return warp_index() % 4 * 16 + half * 8 + lane_index() / 4;
  }
  /// The first of this thread's two columns of eight from 8 n on.
  __device__ static int column(int n) { return n * 8 + lane_index() % 4 * 2; }

  /// 64 columns as A of products; zeros for rows and columns that there are not.
  __device__ void load(const Operand& operand, uint32_t (&a)[16]) const {
    const bfloat16* from = first_row(operand);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const bool valid = begin + row(i % 2) < end && column(i / 2) < operand.columns;
      const bfloat16* pair = from + row(i % 2) * operand.row_stride + column(i / 2);
      a[i] = valid ? *reinterpret_cast<const uint32_t*>(pair) : 0;
    }
  }

  /// The same in swizzled panels of shared memory, by all threads of the warpgroup.
  __device__ void copy(const Operand& operand, int width, bfloat16* to) const {
    constexpr int kThreads = 4 * kWarp;
    const int chunks = width / 8;
    const bfloat16* from = first_row(operand);
    for (int i = static_cast<int>(threadIdx.x) % kThreads; i < kCount * chunks; i += kThreads) {
      const int row = i / chunks;
      const int chunk = i % chunks;
      uint4 words = make_uint4(0, 0, 0, 0);
      if (begin + row < end && chunk * 8 < operand.columns) {
        words = *reinterpret_cast<const uint4*>(from + row * operand.row_stride + chunk * 8);
      }
      bfloat16* panel = to + chunk / 8 * (kCount * kSwizzledColumns);
      *reinterpret_cast<uint4*>(panel + swizzled(row, chunk % 8)) = words;
    }
  }

  /// Sums times `scale`, 0 past the real rows; nothing where there is no output. True where a
  /// result is not finite.
  template <int kSums>
  __device__ bool store(const StoredOutput& output, int64_t rows, int64_t columns, float scale,
                        const float (&sums)[kSums]) const {
    if (output.data == nullptr) return false;
    bool bad = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t place = begin + row(half);
      if (place >= rows) continue;
      const int64_t at = output.offset(batch, head, place);
#pragma unroll
      for (int n = 0; n < kSums / 4; ++n) {
        if (column(n) >= columns) continue;
        const bool both = column(n) + 1 < columns;
        const float left = place < end ? sums[4 * n + 2 * half] * scale : 0.0f;
        const float right = place < end ? sums[4 * n + 2 * half + 1] * scale : 0.0f;
        bad |= !(fabsf(left) < HUGE_VALF) || (both && !(fabsf(right) < HUGE_VALF));
        store_pair(output, at + column(n), both ? 2 : 1, left, right);
      }
    }
    return bad;
  }

 private:
  __device__ const bfloat16* first_row(const Operand& operand) const {
    return operand.high + batch * operand.batch_stride + head * operand.head_stride +
           begin * operand.row_stride;
  }
};

#endif  // sm_90a

}  // namespace cluster_attention::cuda
