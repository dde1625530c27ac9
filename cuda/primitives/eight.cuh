#pragma once

// Eight neighbouring columns of a stored row at once, by loads and stores of 16 bytes where the
// rows allow it (`vectors`: all begin at multiples of 16 bytes). `count` is how many columns there
// are from the first one on: those past it are 0, or not written.

#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/stored_rows.cuh"

namespace cluster_attention::cuda {

struct Eight {
  float values[8];
};

/// One by one, out of the way of kernels whose code is run once: fetching it takes time.
__device__ __noinline__ inline Eight load_eight_singly(StoredRows rows, int64_t at, int count) {
  Eight loaded;
#pragma unroll
  for (int i = 0; i < 8; ++i) loaded.values[i] = i < count ? rows.load(at + i) : 0.0f;
  return loaded;
}
__device__ __noinline__ inline void store_eight_singly(StoredOutput output, int64_t at, int count,
                                                       Eight eight) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) output.store(at + i, eight.values[i]);
  }
}

__device__ inline void load_eight(const float* from, bool vectors, int count, float (&values)[8]) {
  if (vectors && count >= 8) {
    load_eight_floats(from, values);
    return;
  }
  StoredRows rows;
  rows.data = from;
  const Eight loaded = load_eight_singly(rows, 0, count);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = loaded.values[i];
}

/// As operands of tensor cores (mma.cuh): four pairs, and with kSplit their low parts.
template <bool kSplit>
__device__ inline void load_eight(const StoredRows& rows, int64_t at, bool vectors, int count,
                                  uint32_t (&high)[4], uint32_t (&low)[4]) {
  if (rows.is_bfloat16 && vectors && count >= 8) {
    const uint4 pairs =
        *reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(rows.data) + at);
    high[0] = pairs.x, high[1] = pairs.y, high[2] = pairs.z, high[3] = pairs.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) low[i] = 0;
    return;
  }
  float values[8];
  if (rows.is_bfloat16) {
    const Eight loaded = load_eight_singly(rows, at, count);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = loaded.values[i];
  } else {
    load_eight(static_cast<const float*>(rows.data) + at, vectors, count, values);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kSplit) {
      split_pair(values[2 * i], values[2 * i + 1], high[i], low[i]);
    } else {
      high[i] = pack_bfloat16(values[2 * i], values[2 * i + 1]);
      low[i] = 0;
    }
  }
}

__device__ inline void store_eight(const StoredOutput& output, int64_t at, bool vectors, int count,
                                   const float (&values)[8]) {
  if (!vectors || count < 8) {
    if (count <= 0) return;
    Eight eight;
#pragma unroll
    for (int i = 0; i < 8; ++i) eight.values[i] = values[i];
    store_eight_singly(output, at, count, eight);
  } else if (output.is_bfloat16) {
    *reinterpret_cast<uint4*>(static_cast<bfloat16*>(output.data) + at) =
        make_uint4(pack_bfloat16(values[0], values[1]), pack_bfloat16(values[2], values[3]),
                   pack_bfloat16(values[4], values[5]), pack_bfloat16(values[6], values[7]));
  } else {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(output.data) + at);
    to[0] = make_float4(values[0], values[1], values[2], values[3]);
    to[1] = make_float4(values[4], values[5], values[6], values[7]);
  }
}

/// Whether a pair of bfloat16 holds a NaN or an Inf.
__device__ inline bool pair_is_bad(uint32_t pair) {
  return (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
}

}  // namespace cluster_attention::cuda
