// The tile kernels of simd.h for one instruction set. Included once by each target file, which
// defines CA_WIDTH (floats per vector), CA_TILE_ROWS x CA_TILE_VECTORS (accumulators that fit its
// registers), CA_SIMD_NAME and, where bfloat16 values can be multiplied, CA_TILE_REGISTERS (their
// class) or CA_BFLOAT16_VECTORS, inside namespace cluster_attention { namespace { ... } }.

// Each part stands on those before it.
// clang-format off
#include "native/simd/vector.inl"

constexpr int kTileRows = CA_TILE_ROWS;
constexpr int kTileVectors = CA_TILE_VECTORS;
constexpr int64_t kLanes = kWidth * kTileVectors;
static_assert(kLanes <= kMaximumLanes, "scratch is sized by kMaximumLanes");

inline int64_t vectors_of(int64_t columns) { return (columns + kWidth - 1) / kWidth; }

#include "native/simd/tile_packing.inl"
#include "native/simd/tile_product.inl"
#include "native/simd/tile_selection.inl"
#if defined(CA_TILE_REGISTERS) || defined(CA_BFLOAT16_VECTORS)
#define CA_MULTIPLIES_BFLOAT16
#include "native/simd/tile_bfloat16.inl"
#endif
#include "native/simd/tile_few_queries.inl"
#include "native/simd/tile_attention.inl"
#include "native/simd/tile_rows.inl"
#include "native/simd/tile_codes.inl"
#include "native/simd/tile_peak.inl"
// clang-format on

#if defined(CA_MULTIPLIES_BFLOAT16)
constexpr bool kMultipliesBfloat16 = true;
#else
constexpr bool kMultipliesBfloat16 = false;
constexpr decltype(Simd::multiply_bfloat16) multiply_bfloat16 = nullptr;
constexpr decltype(Simd::pack_bfloat16) pack_bfloat16 = nullptr;
#endif

constexpr Simd kSimd = {CA_SIMD_NAME,
                        kMultipliesBfloat16,
                        kLanes,
                        kWidth,
                        pack,
                        unpack,
                        multiply,
                        multiply_bfloat16,
                        pack_bfloat16,
                        attend,
                        thin_candidates,
                        softmax_rows,
                        softmax_lanes,
                        softmax_gradient,
                        softmax_lanes_gradient,
                        attend_gradient,
                        argmax_rows,
                        sign_bits,
                        assign_hamming,
                        count_bits,
                        exp2_array,
                        weigh_array,
                        dot,
                        sum_rows,
                        sum_labelled_rows,
                        multiply_adds};
