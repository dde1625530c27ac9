#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "native/simd/simd.h"
#include "native/simd/targets.h"

// What every processor of the architecture has: SSE2, NEON, or whatever the compiler makes of it.
#if defined(__ARM_NEON)
#define CA_SIMD_NAME "neon"
#define CA_TILE_ROWS 8  // 32 registers
#else
#define CA_SIMD_NAME "baseline"
#define CA_TILE_ROWS 4  // 16 registers
#endif
#define CA_WIDTH 4
#define CA_TILE_VECTORS 2

namespace cluster_attention {
namespace {
#include "native/simd/tile_kernels.inl"
}  // namespace

const Simd& simd_baseline() { return kSimd; }

}  // namespace cluster_attention
