// Sums of products have the errors of tensor cores.

#include <cuda_runtime.h>

#include <cmath>

#include "test/native/harness.h"

namespace cuda_model {

namespace {

/// sum + 16 products of which the first `count` are `term`.
float add_terms(float sum, float term, int count) {
  FourFloats a[16] = {};
  FourFloats b[16];
  for (FourFloats& ones : b) ones = FourFloats{1.0f, 1.0f, 1.0f, 1.0f};
  for (int k = 0; k < count; ++k) a[k] = FourFloats{term, -term, term, -term};
  float sums[4] = {sum, -sum, sum, -sum};
  add_products(sums, a, b);
  CHECK(std::isnan(sums[0]) || sums[1] == -sums[0]);  // toward 0
  return sums[0];
}

TEST_ONCE("CUDA model: tensor cores cut what they add") {
  CHECK_EQUAL(add_terms(0.0f, 0.75f, 16), 12.0f);
  CHECK_EQUAL(add_terms(1.0f, 0x1p-12f, 1), 1.0f + 0x1p-12f);
  // A place beyond the last one of the sum is kept, two make one that the sum has room for; what
  // lies below is lost, however many there are.
  CHECK_EQUAL(add_terms(1.0f, 0x1p-24f, 1), 1.0f);
  CHECK_EQUAL(add_terms(1.0f, 0x1p-24f, 2), 1.0f + 0x1p-23f);
  CHECK_EQUAL(add_terms(1.0f, 0x1.8p-25f, 16), 1.0f);
  // 1 and three places in 24: cut, where rounding to nearest would go up.
  CHECK_EQUAL(add_terms(1.0f, 0x1p-24f, 3), 1.0f + 0x1p-23f);
}

TEST_ONCE("CUDA model: tensor cores keep NaN and Inf") {
  CHECK_EQUAL(add_terms(0.0f, HUGE_VALF, 1), HUGE_VALF);
  CHECK_EQUAL(add_terms(3e38f, 3e38f, 1), HUGE_VALF);
  CHECK(std::isnan(add_terms(-HUGE_VALF, HUGE_VALF, 1)));
}

}  // namespace

}  // namespace cuda_model
