#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "native/simd/simd.h"
#include "native/simd/targets.h"

#define CA_SIMD_NAME "avx512_bf16"
#define CA_WIDTH 16
#define CA_TILE_ROWS 8
#define CA_TILE_VECTORS 3
#define CA_BFLOAT16_VECTORS

namespace cluster_attention {
namespace {
#include "native/simd/tile_kernels.inl"
}  // namespace

const Simd& simd_avx512_bf16() { return kSimd; }

}  // namespace cluster_attention
