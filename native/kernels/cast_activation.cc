#include "native/kernels/cast_activation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/softmax_state.h"

namespace cluster_attention::kernels {

namespace {

constexpr float kMean = 0.707107f;
constexpr double kVariance = 0.282095 * 0.282095;
constexpr float kInverseWidth = static_cast<float>(1.0 / (0.282095 * 1.41421356237309504880));
/// exp(-z^2) = 2^(kExponent (x - mu)^2): squaring before the scaling rounds less than squaring z.
constexpr float kExponent = static_cast<float>(-1.44269504088896340736 / (2.0 * kVariance));

/// exp(t^2) erfc(t) / 2 times (t + 2) is smooth in s = (t - 2) / (t + 2) for t >= 0; this is its
/// minimax polynomial on t <= 10 (relative error 4.3e-8 before rounding). From t = 10 on exp(-t^2)
/// is below the smallest normal float.
constexpr float kTailCentre = 2.0f;
constexpr float kTailEnd = 10.0f;
constexpr float kTail[] = {0x1.058672p-1f,  -0x1.5fd390p-2f,  0x1.1e2d4ap-3f,
                           -0x1.2a7a20p-6f, -0x1.5ffca8p-7f,  0x1.a5dfdep-9f,
                           0x1.86787ep-10f, -0x1.8baa9cp-12f, -0x1.e3e49ap-13f};

/// The derivative of f at x is kSlope exp(-(x - mu)^2 / (2 sigma^2)).
constexpr float kSlope = static_cast<float>(1.0 / (0.282095 * 2.50662827463100050242));

/// One row; `x` holds the logits and then their function. Returns 0 if all logits were finite.
/// `exponent` (kMaximumLanes) is left with exp(-(x - mu)^2 / (2 sigma^2)) of them.
uint32_t laplace_row(const Simd& simd, float* x, int64_t columns, float scale, float* exponent) {
  alignas(64) float tail[kMaximumLanes];
  uint32_t non_finite = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const float logit = x[i] * scale;
    non_finite |= is_non_finite(logit);
    const float offset = logit - kMean;
    const float distance = std::fabs(offset) * kInverseWidth;
    const float t = distance > kTailEnd ? kTailEnd : distance;  // NaN stays NaN
    const float inverse = 1.0f / (t + kTailCentre);
    const float s = (t - kTailCentre) * inverse;
    float p = kTail[8];
    p = p * s + kTail[7];
    p = p * s + kTail[6];
    p = p * s + kTail[5];
    p = p * s + kTail[4];
    p = p * s + kTail[3];
    p = p * s + kTail[2];
    p = p * s + kTail[1];
    p = p * s + kTail[0];
    tail[i] = p * inverse;
    exponent[i] = offset * offset * kExponent;
    x[i] = offset;
  }
  simd.exp2(exponent, columns);
  for (int64_t i = 0; i < columns; ++i) {
    const float outside = tail[i] * exponent[i];
    x[i] = x[i] < 0.0f ? outside : 1.0f - outside;
  }
  return non_finite;
}

void differentiate_laplace_rows(const Simd& simd, float* score, float* change, int64_t rows,
                                int64_t columns, float scale, const float* factor,
                                const float* weight, float* total) {
  alignas(64) float exponent[kMaximumLanes];
  alignas(64) float ones[kMaximumLanes];
  std::fill_n(ones, columns, 1.0f);
  double sum[kMaximumLanes] = {};
  const float* share = weight != nullptr ? weight : ones;
  for (int64_t r = 0; r < rows; ++r) {
    float* f = score + r * simd.lanes;
    float* x = change + r * simd.lanes;
    laplace_row(simd, f, columns, factor != nullptr ? scale * factor[r] : scale, exponent);
    for (int64_t i = 0; i < columns; ++i) {
      sum[i] += f[i] * x[i];
      f[i] *= share[i];
      x[i] *= share[i] * kSlope * exponent[i];
    }
  }
  std::copy_n(sum, columns, total);
}

}  // namespace

bool laplace_rows(const Simd& simd, float* score, int64_t rows, int64_t columns, float scale) {
  // score: (rows, columns) of a (rows, lanes) tile
  alignas(64) float exponent[kMaximumLanes];
  uint32_t non_finite = 0;
  for (int64_t r = 0; r < rows; ++r) {
    non_finite |= laplace_row(simd, score + r * simd.lanes, columns, scale, exponent);
  }
  return non_finite == 0;
}

bool activate_rows(const Simd& simd, Activation activation, float* score, int64_t rows,
                   int64_t columns, float scale) {
  // score: (rows, columns) of a (rows, lanes) tile
  if (activation == Activation::laplace) {
    return laplace_rows(simd, score, rows, columns, scale);
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  alignas(64) float maximum[kMaximumLanes];
  alignas(64) float sum[kMaximumLanes];
  alignas(64) float minimum[kMaximumLanes];
  simd.softmax_rows(score, rows, columns, scale * kLog2E, maximum, sum, minimum);
  bool finite = true;
  for (int64_t i = 0; i < columns; ++i) {
    // NaN and +Inf make the sum NaN; -Inf shows in the minimum alone.
    finite = finite && sum[i] < kInfinity && minimum[i] != -kInfinity;
  }
  return finite;
}

void differentiate_rows(const Simd& simd, Activation activation, float* score, float* change,
                        int64_t rows, int64_t columns, float scale, const float* factor,
                        const float* weight, float* total) {
  // score, change: (rows, columns) of (rows, lanes) tiles
  if (activation == Activation::laplace) {
    differentiate_laplace_rows(simd, score, change, rows, columns, scale, factor, weight, total);
    return;
  }
  alignas(64) float maximum[kMaximumLanes];
  alignas(64) float sum[kMaximumLanes];
  alignas(64) float minimum[kMaximumLanes];
  for (int64_t r = 0; factor != nullptr && r < rows; ++r) {
    for (int64_t i = 0; i < columns; ++i) score[r * simd.lanes + i] *= factor[r];
  }
  simd.softmax_rows(score, rows, columns, scale * kLog2E, maximum, sum, minimum);
  simd.softmax_gradient(score, change, rows, columns, nullptr, weight, true, total);
}

}  // namespace cluster_attention::kernels
