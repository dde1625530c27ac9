#pragma once

// f of §7: softmax, or the Laplace function of each logit by itself.

#include <cstdint>
#include <cstring>

#include "native/core/problem.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// score[r][i] -> f(scale * score[r][i]) in place, for a tile of `rows` rows, simd.lanes apart;
/// softmax runs down the rows and wants scale >= 0. False if a logit was not finite.
bool activate_rows(const Simd& simd, Activation activation, float* score, int64_t rows,
                   int64_t columns, float scale);

/// The Laplace function 0.5 (1 + erf((x - mu) / (sigma sqrt 2))), mu = 0.707107, sigma = 0.282095,
/// of x = scale * score[r][i], in place. False if an x was not finite.
/// Relative error below 2e-6 wherever the result exceeds 1e-3: small results are the tail of a
/// complementary error function, never 1 - erf.
bool laplace_rows(const Simd& simd, float* score, int64_t rows, int64_t columns, float scale);

/// Backward of f along a tile of raw products, whose logits are scale * factor[r] * score[r][i]
/// (factor null: 1); scales of any sign. change: the gradients by f. Leaves
///     total[i] = sum_r f change,   score[r][i] = weight[i] f,
///     change[r][i] = weight[i] times the gradient by the logit          (weight null: 1)
/// weight and total have room for whole vectors.
void differentiate_rows(const Simd& simd, Activation activation, float* score, float* change,
                        int64_t rows, int64_t columns, float scale, const float* factor,
                        const float* weight, float* total);

/// 1 for NaN and infinities, else 0. Joined with |, it keeps a loop vectorisable.
inline uint32_t is_non_finite(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
}

}  // namespace cluster_attention::kernels
