#pragma once

// Products of bfloat16 by the four warps of a warpgroup, accumulated in float32 (wgmma, sm_90a).
// D (64, n) += A (64, 16) B (16, n): D in registers, lane by lane as in mma.cuh (16 rows per warp,
// d[4 t .. 4 t + 3] for the columns 8 t ..), A in shared memory or in registers as FragmentA, B in
// shared memory. The same of bytes over 32 columns, summed in int32: A as in integer_mma.cuh.
// Products are asynchronous:
//
//   begin_products();             // once the registers and the shared memory are as they should be
//   multiply_...(d, ...); ...
//   commit_products();
//   wait_products<0>(); hold(d);  // now d may be used, and the operands overwritten
//
// Tiles in shared memory have rows of 64 bfloat16 (128 bytes), begin at multiples of 1024 bytes and
// are swizzled: the 16 bytes at chunk c of row r lie at chunk c ^ (r % 8), see swizzled().

#include "cuda/primitives/mbarrier.cuh"
#include "cuda/primitives/mma.cuh"

namespace cluster_attention::cuda {

/// Elements in a row of a swizzled tile.
constexpr int kSwizzledColumns = 64;

/// Offset in elements of chunk `chunk` (8 elements) of row `row`.
__device__ inline int swizzled(int row, int chunk) {
  return row * kSwizzledColumns + ((chunk ^ (row % 8)) * 8);
}

/// Where a tile lies, for describe_tile().
__device__ inline uint32_t locate_tile(const void* tile) { return shared_address(tile) >> 4; }

/// Names a swizzled tile, or a part of it that begins `bytes` behind its begin: 32 more for the
/// next 16 columns (32 of bytes), 2048 more for the next 16 rows. `panel_bytes` leads from 64
/// columns of an operand whose rows are summed over to the next 64 (multiply_transposed()). One
/// addition, when `bytes` and `panel_bytes` are constants; tensor cores take the sum from a uniform
/// register, where `place` has to be for that.
__device__ inline uint64_t describe_tile(uint32_t place, int bytes, int panel_bytes = 16) {
  constexpr uint64_t kEightRows = 1024;
  const uint32_t low = place + static_cast<uint32_t>((bytes >> 4) + (panel_bytes >> 4 << 16));
  return low | kEightRows >> 4 << 32 | uint64_t{1} << 62;
}

#if defined(CA_CUDA_MODEL)

using cuda_model::commit_products;
__device__ inline void begin_products() {}
template <int kGroups>
__device__ inline void wait_products() {
  cuda_model::wait_products(kGroups);
}
template <typename T, int kCount>
__device__ inline void hold(T (&)[kCount]) {}
template <int kCount>
__device__ inline void multiply(float (&d)[kCount], uint64_t a, uint64_t b, bool add) {
  cuda_model::start_product({d, nullptr, 2 * kCount, nullptr, a, b, false, add});
}
template <int kCount>
__device__ inline void multiply(float (&d)[kCount], const uint32_t* a, uint64_t b, bool add) {
  cuda_model::start_product({d, nullptr, 2 * kCount, a, 0, b, false, add});
}
template <int kCount>
__device__ inline void multiply_transposed(float (&d)[kCount], const uint32_t* a, uint64_t b,
                                           bool add) {
  cuda_model::start_product({d, nullptr, 2 * kCount, a, 0, b, true, add});
}
template <int kCount>
__device__ inline void multiply_bytes(int32_t (&d)[kCount], const uint32_t* a, uint64_t b,
                                      bool add) {
  cuda_model::start_product({nullptr, d, 2 * kCount, a, 0, b, false, add});
}
template <int kRegisters>
__device__ inline void shrink_registers() {}
template <int kRegisters>
__device__ inline void grow_registers() {}

#else

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroups>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// Keeps the compiler from moving registers across the point where products are in flight.
template <int kCount>
__device__ inline void hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ inline void hold(int32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int kCount>
__device__ inline void hold(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#define CA_D8(i)                                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define CA_D32(i) CA_D8(i), CA_D8(i + 8), CA_D8(i + 16), CA_D8(i + 24)
#define CA_I8(i)                                                                              \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])
#define CA_NAMES_32                                                                \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
  "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CA_NAMES_64                                                                           \
  CA_NAMES_32                                                                                 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/// D (64, 2 kCount) (+)= A B^T over 16 columns: A (64, 16) and B (n, 16) in swizzled tiles.
__device__ inline void multiply(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" CA_NAMES_32
      "}, %32, %33, add, 1, 1, 0, 0;\n}\n"
      : CA_D32(0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
__device__ inline void multiply(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" CA_NAMES_64
      "}, %64, %65, add, 1, 1, 0, 0;\n}\n"
      : CA_D32(0), CA_D32(32)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

/// The same with A in registers.
__device__ inline void multiply(float (&d)[32], const uint32_t* a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" CA_NAMES_32
      "}, {%32,%33,%34,%35}, %36, add, 1, 1, 0;\n}\n"
      : CA_D32(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}

/// D (64, 2 kCount) (+)= A B over 16 rows of B: A in registers, B (16, n) in a swizzled tile.
__device__ inline void multiply_transposed(float (&d)[32], const uint32_t* a, uint64_t b,
                                           bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" CA_NAMES_32
      "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}\n"
      : CA_D32(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}
__device__ inline void multiply_transposed(float (&d)[64], const uint32_t* a, uint64_t b,
                                           bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" CA_NAMES_64
      "}, {%64,%65,%66,%67}, %68, add, 1, 1, 1;\n}\n"
      : CA_D32(0), CA_D32(32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}

/// D (64, 64) (+)= A B^T over 32 columns: A of bytes without sign in registers, B (64, 32) of bytes
/// with sign in a swizzled tile.
__device__ inline void multiply_bytes(int32_t (&d)[32], const uint32_t* a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {" CA_NAMES_32
      "}, {%32,%33,%34,%35}, %36, add;\n}\n"
      : CA_I8(0), CA_I8(8), CA_I8(16), CA_I8(24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}

#undef CA_D8
#undef CA_D32
#undef CA_I8
#undef CA_NAMES_32
#undef CA_NAMES_64

/// Gives registers back, or takes them, for all warps of a warpgroup.
template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace cluster_attention::cuda
