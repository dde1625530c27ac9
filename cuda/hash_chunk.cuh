#pragma once

// Eight neighbouring columns of a row, from memory to operands of tensor cores.

#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/stored_rows.cuh"
#include "cuda/read_rows.cuh"

namespace cluster_attention::cuda {

/// bits << 1 with the sign of a value in its place.
__device__ inline uint32_t append_sign(uint32_t bits, float value) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_l(__float_as_uint(value), bits, 1);
#else
  return bits << 1 | __float_as_uint(value) >> 31;
#endif
}

/// Eight columns of a row as they are stored.
template <Read kRead>
struct HashChunk {
  float values[8];

  __device__ void load(const float* data, int64_t at) { load_eight_floats(data + at, values); }
  __device__ void set(int i, float value) { values[i] = value; }
  __device__ float get(int i) const {
    return kRead == Read::rounded ? round_to_bfloat16(values[i]) : values[i];
  }
  __device__ void split(uint32_t (&high)[4], uint32_t (&low)[4], float& square) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kRead == Read::float32) {
        split_pair(values[2 * i], values[2 * i + 1], high[i], low[i]);
      } else {
        high[i] = pack_bfloat16(values[2 * i], values[2 * i + 1]);
        low[i] = 0;
      }
      square = fmaf(values[2 * i], values[2 * i], square);
      square = fmaf(values[2 * i + 1], values[2 * i + 1], square);
    }
  }
};
template <>
struct HashChunk<Read::bfloat16> {
  uint32_t words[4];

  __device__ void load(const float* data, int64_t at) {
    const uint4 all = *reinterpret_cast<const uint4*>(reinterpret_cast<const bfloat16*>(data) + at);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  }
  __device__ void set(int i, float value) {
    const uint32_t bits = to_bfloat16(value).bits;
    words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
  }
  __device__ float get(int i) const {
    return i % 2 == 0 ? low_of(words[i / 2]) : high_of(words[i / 2]);
  }
  __device__ void split(uint32_t (&high)[4], uint32_t (&low)[4], float& square) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = words[i];
      low[i] = 0;
      square = fmaf(low_of(words[i]), low_of(words[i]), square);
      square = fmaf(high_of(words[i]), high_of(words[i]), square);
    }
  }
};

}  // namespace cluster_attention::cuda
