#pragma once

// bfloat16 as a storage type, and loads that do not care how an array is stored.

#include <cstring>

#include "cuda/primitives/platform.cuh"

namespace cluster_attention::cuda {

struct bfloat16 {
  uint16_t bits;
};

CA_HOST_DEVICE inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
CA_HOST_DEVICE inline float to_float(float value) { return value; }

/// Nearest, ties to even. A NaN stays one, an Inf too; what is past the range becomes Inf.
CA_HOST_DEVICE inline bfloat16 to_bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return {rounded};
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

CA_HOST_DEVICE inline float round_to_bfloat16(float value) { return to_float(to_bfloat16(value)); }

/// A value of the type T of an array.
template <typename T>
CA_HOST_DEVICE inline T from_float(float value);
template <>
CA_HOST_DEVICE inline float from_float<float>(float value) {
  return value;
}
template <>
CA_HOST_DEVICE inline bfloat16 from_float<bfloat16>(float value) {
  return to_bfloat16(value);
}

/// Two values as the operands of tensor cores hold them: the first one in the low half.
CA_HOST_DEVICE inline uint32_t pack(bfloat16 low, bfloat16 high) {
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}
__device__ inline uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return pack(to_bfloat16(low), to_bfloat16(high));
#endif
}
CA_HOST_DEVICE inline float low_of(uint32_t packed) {
  return to_float(bfloat16{static_cast<uint16_t>(packed & 0xffff)});
}
CA_HOST_DEVICE inline float high_of(uint32_t packed) {
  return to_float(bfloat16{static_cast<uint16_t>(packed >> 16)});
}

/// A value as the sum of two bfloat16, to about 2^-17 of it: high is the nearest one, low the
/// nearest of the rest. Where high is not finite (or past the range), low is 0, so that no NaN is
/// made of an Inf.
CA_HOST_DEVICE inline void split_bfloat16(float value, bfloat16& high, bfloat16& low) {
  high = to_bfloat16(value);
  const float rest = value - to_float(high);
  const bool finite = (high.bits & 0x7f80) != 0x7f80;
  low = finite ? to_bfloat16(rest) : bfloat16{0};
}

}  // namespace cluster_attention::cuda
