#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "native/simd/simd.h"
#include "native/simd/targets.h"

#define CA_SIMD_NAME "avx2"
#define CA_WIDTH 8
#define CA_TILE_ROWS 4
#define CA_TILE_VECTORS 3

namespace cluster_attention {
namespace {
#include "native/simd/tile_kernels.inl"
}  // namespace

const Simd& simd_avx2() { return kSimd; }

}  // namespace cluster_attention
