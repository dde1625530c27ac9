#pragma once

// The language of CUDA kernels for g++: what the sources in cuda/ use of it, and no more.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "test/cuda/model/grid.h"
#include "test/cuda/model/sanitizer.h"

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__  // as an attribute too: libstdc++ writes __attribute__((__noinline__))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define CUDA_MODEL_VECTORS(type, name, align2, align4)             \
  struct alignas(align2) name##2 {                                 \
    type x, y;                                                     \
  };                                                               \
  struct alignas(align4) name##4 {                                 \
    type x, y, z, w;                                               \
  };                                                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_MODEL_VECTORS(float, float, 8, 16)
CUDA_MODEL_VECTORS(int, int, 8, 16)
CUDA_MODEL_VECTORS(unsigned, uint, 8, 16)
#undef CUDA_MODEL_VECTORS
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

inline uint3 threadIdx;  // of the thread that runs
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;
constexpr int warpSize = 32;

// ---- barriers and exchanges ----

namespace cuda_model {

enum Kind {
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kVote,
  kMatrix,
  kTiles,
  kBytes,
  kProducts
};

template <typename T>
T shuffle_from(Kind kind, unsigned mask, const T& value, int lane) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "four or eight bytes");
  const Exchange exchange(kind, mask, &value, sizeof value);
  T result;
  std::memcpy(&result, exchange.entry(lane), sizeof result);
  return result;
}

/// For ThreadSanitizer every fence comes after all fences before it.
inline char fences;
inline void fence() {
  publish(&fences);
  observe(&fences);
}

inline unsigned votes(unsigned mask, bool predicate) {
  const Exchange exchange(kVote, mask, &predicate, sizeof predicate);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    bool one;
    std::memcpy(&one, exchange.entry(lane), sizeof one);
    result |= static_cast<unsigned>(one) << lane;
  }
  return result;
}

}  // namespace cuda_model

inline void __syncthreads() { cuda_model::sync_block(); }
inline int __syncthreads_count(int predicate) {
  return cuda_model::sync_block_sum(predicate != 0 ? 1 : 0);
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  const cuda_model::Exchange exchange(cuda_model::kSyncWarp, mask, nullptr, 0);
}
inline void __threadfence() { cuda_model::fence(); }
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_model::shuffle_from(cuda_model::kShuffle, mask, value, lane & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuda_model::shuffle_from(cuda_model::kShuffleXor, mask, value,
                                  cuda_model::lane_of_running_thread() ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const int lane = cuda_model::lane_of_running_thread();
  const int from = lane - static_cast<int>(distance);
  return cuda_model::shuffle_from(cuda_model::kShuffleUp, mask, value, from < 0 ? lane : from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const int lane = cuda_model::lane_of_running_thread();
  const int from = lane + static_cast<int>(distance);
  return cuda_model::shuffle_from(cuda_model::kShuffleDown, mask, value, from > 31 ? lane : from);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cuda_model::votes(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return cuda_model::votes(mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cuda_model::votes(mask, predicate == 0) == 0;
}

// ---- atomics: one thread runs at a time ----

namespace cuda_model {

/// As accesses that ThreadSanitizer knows to be atomic.
template <typename T>
T value_at(const T* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}
template <typename T>
T replace(T* address, T value) {
  const T before = value_at(address);
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
  return before;
}

}  // namespace cuda_model

#define CUDA_MODEL_ATOMIC(name, T, expression)                       \
  inline T name(T* address, T value) {                               \
    const T before = cuda_model::value_at(address);                  \
    return cuda_model::replace(address, static_cast<T>(expression)); \
  }
#define CUDA_MODEL_ATOMICS(T)                                                  \
  CUDA_MODEL_ATOMIC(atomicAdd, T, before + value)                              \
  CUDA_MODEL_ATOMIC(atomicMin, T, value < before ? value : before)             \
  CUDA_MODEL_ATOMIC(atomicMax, T, value > before ? value : before)             \
  CUDA_MODEL_ATOMIC(atomicAnd, T, (before & value))                            \
  CUDA_MODEL_ATOMIC(atomicOr, T, before | value)                               \
  CUDA_MODEL_ATOMIC(atomicXor, T, before ^ value)                              \
  inline T atomicExch(T* a, T value) { return cuda_model::replace(a, value); } \
  inline T atomicCAS(T* a, T expected, T value) {                              \
    const T before = cuda_model::value_at(a);                                  \
    return cuda_model::replace(a, before == expected ? value : before);        \
  }
CUDA_MODEL_ATOMICS(int)
CUDA_MODEL_ATOMICS(unsigned)
CUDA_MODEL_ATOMICS(unsigned long long)
#undef CUDA_MODEL_ATOMICS
#undef CUDA_MODEL_ATOMIC
inline unsigned atomicInc(unsigned* a, unsigned last) {
  const unsigned before = cuda_model::value_at(a);
  return cuda_model::replace(a, before >= last ? 0u : before + 1u);
}

// ---- arithmetic ----

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// ---- tensor cores ----

namespace cuda_model {

/// See cuda/primitives/mma.cuh for the places of the operands.
void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
/// Of bytes, see cuda/primitives/integer_mma.cuh.
void mma_u8_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_tiles(uint32_t (&r)[4], const void* row, bool transposed);

}  // namespace cuda_model
