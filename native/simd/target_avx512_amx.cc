#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "native/simd/simd.h"
#include "native/simd/targets.h"
#include "native/simd/tile_registers.h"

#define CA_SIMD_NAME "avx512_amx"
#define CA_WIDTH 16
#define CA_TILE_ROWS 8
#define CA_TILE_VECTORS 3
#define CA_TILE_REGISTERS AmxRegisters

namespace cluster_attention {
namespace {
#include "native/simd/tile_kernels.inl"
}  // namespace

const Simd& simd_avx512_amx() { return kSimd; }

}  // namespace cluster_attention
