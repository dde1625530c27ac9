#pragma once

#include "native/simd/simd.h"

namespace cluster_attention {

// Each is defined in the target file of its name; on other processors only the baseline exists.
const Simd& simd_baseline();
#if defined(__x86_64__)
const Simd& simd_avx2();
const Simd& simd_avx512();
const Simd& simd_avx512_vpopcnt();
const Simd& simd_avx512_bf16();
const Simd& simd_avx512_amx();
#endif

}  // namespace cluster_attention
