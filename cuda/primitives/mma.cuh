#pragma once

// Products of bfloat16 on tensor cores, accumulated in float32. A warp multiplies A (16,16) by
// B (16,8) and adds to D (16,8). With group = lane / 4 and pair = 2 (lane % 4), a lane holds
//
//   a[0]: A[group][pair], A[group][pair+1]        a[1]: the same of row group + 8
//   a[2]: A[group][pair+8], A[group][pair+9]      a[3]: the same of row group + 8
//   b[0]: B[pair][group], B[pair+1][group]        b[1]: B[pair+8][group], B[pair+9][group]
//   d[0], d[1]: D[group][pair], D[group][pair+1]  d[2], d[3]: the same of row group + 8
//
// so that D of one product becomes A of the next (two tiles of D side by side: one of A) without
// leaving the registers. float32 operands are cut in two bfloat16 each; of the four products the
// one of the two low parts is left out, which leaves an error of about 2^-17 of each factor.
//
// Tensor cores cut, toward 0, what they add; see mma_chains.cuh.

#include "cuda/primitives/bfloat16.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

using FragmentA = uint32_t[4];
using FragmentB = uint32_t[2];
using FragmentD = float[4];

/// The same on any GPU: each lane fetches the row of A and the columns of B that it needs. It is
/// called, by values in registers: kernels hold hundreds of products, and a copy of it in the place
/// of each makes sm_75 slow to compile and large.
__device__ __noinline__ inline float4 multiply_by_shuffles(float4 sums, uint4 a, uint2 b) {
  const int group = lane_index() / 4;
  const int column = lane_index() % 4 * 2;
  float d[4] = {sums.x, sums.y, sums.z, sums.w};
  for (int source = 0; source < 4; ++source) {
    const int lane = group * 4 + source;
    const uint32_t row[4] = {shuffle(a.x, lane), shuffle(a.y, lane), shuffle(a.z, lane),
                             shuffle(a.w, lane)};
    for (int side = 0; side < 2; ++side) {
      for (int half = 0; half < 2; ++half) {
        const uint32_t other = shuffle(half == 0 ? b.x : b.y, (column + side) * 4 + source);
        d[side] = fmaf(low_of(row[2 * half]), low_of(other), d[side]);
        d[side] = fmaf(high_of(row[2 * half]), high_of(other), d[side]);
        d[side + 2] = fmaf(low_of(row[2 * half + 1]), low_of(other), d[side + 2]);
        d[side + 2] = fmaf(high_of(row[2 * half + 1]), high_of(other), d[side + 2]);
      }
    }
  }
  return {d[0], d[1], d[2], d[3]};
}

__device__ inline void mma_bf16_16x8x16_by_shuffles(FragmentD& d, const FragmentA& a,
                                                    const FragmentB& b) {
  const float4 sums =
      multiply_by_shuffles({d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]});
  d[0] = sums.x;
  d[1] = sums.y;
  d[2] = sums.z;
  d[3] = sums.w;
}

__device__ inline void mma_bf16_16x8x16(FragmentD& d, const FragmentA& a, const FragmentB& b) {
#if defined(CA_CUDA_MODEL)
  cuda_model::mma_bf16_16x8x16(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_bf16_16x8x16_by_shuffles(d, a, b);
#endif
}

/// Four 8 x 8 tiles of bfloat16 from shared memory, tile i in r[i]: lane l names the row l % 8 of
/// tile l / 8 (8 values, aligned to 16 bytes), and gets from each tile the values pair, pair + 1 of
/// row group. Rows (m, k) of A in the order (0,0), (8,0), (0,8), (8,8) give a FragmentA; rows of
/// B's transpose (n, k) in the order (0,0), (0,8) give a FragmentB.
__device__ inline void load_tiles(uint32_t (&r)[4], const bfloat16* row) {
#if defined(CA_CUDA_MODEL)
  cuda_model::load_tiles(r, row, false);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

/// The same with every tile transposed: rows of B itself (k, n) in the order (0,0), (8,0) give a
/// FragmentB.
__device__ inline void load_tiles_transposed(uint32_t (&r)[4], const bfloat16* row) {
#if defined(CA_CUDA_MODEL)
  cuda_model::load_tiles(r, row, true);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

/// Two floats as the high and the low parts of two operands, see split_bfloat16().
__device__ inline void split_pair(float first, float second, uint32_t& high, uint32_t& low) {
  high = pack_bfloat16(first, second);
  low = pack_bfloat16(first - low_of(high), second - high_of(high));
  // No NaN is made of an Inf.
  if ((high & 0x7f80u) == 0x7f80u) low &= 0xffff0000u;
  if ((high & 0x7f800000u) == 0x7f800000u) low &= 0xffffu;
}

/// The same for weights of a softmax, which are finite or else NaN.
__device__ inline void split_weights(float first, float second, uint32_t& high, uint32_t& low) {
  high = pack_bfloat16(first, second);
  low = pack_bfloat16(first - low_of(high), second - high_of(high));
}

/// Tiles 2 k and 2 k + 1 of D, side by side, as A of the next product.
template <int kTiles>
__device__ inline void pack_tiles(const float (&weights)[kTiles][4], int k, FragmentA& a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* pair = &weights[2 * k + i / 2][i % 2 * 2];
    a[i] = pack_bfloat16(pair[0], pair[1]);
  }
}

/// The three products of split operands, small ones first. kSwapped: in the order in which those of
/// B^T A^T are added.
template <bool kSwapped = false>
__device__ inline void mma_split_16x8x16(FragmentD& d, const FragmentA& high_a,
                                         const FragmentA& low_a, const FragmentB& high_b,
                                         const FragmentB& low_b) {
  if constexpr (kSwapped) {
    mma_bf16_16x8x16(d, high_a, low_b);
    mma_bf16_16x8x16(d, low_a, high_b);
  } else {
    mma_bf16_16x8x16(d, low_a, high_b);
    mma_bf16_16x8x16(d, high_a, low_b);
  }
  mma_bf16_16x8x16(d, high_a, high_b);
}

}  // namespace cluster_attention::cuda
