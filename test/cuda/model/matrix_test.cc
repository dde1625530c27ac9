// Sums of products have the errors of tensor cores.

#include <algorithm>
#include <cmath>

#include "test/cuda/model/tensor_core.h"
#include "test/native/harness.h"

namespace cuda_model {

namespace {

/// sum + 16 products of which the first `count` are `term`.
float add_terms(float sum, float term, int count) {
  TileProduct product{};
  for (int column = 0; column < kTileColumns; ++column) {
    const float sign = column % 2 == 0 ? 1.0f : -1.0f;
    for (float(&row)[kTileColumns] : product.b) row[column] = sign;
    for (float(&row)[kTileColumns] : product.d) row[column] = sign * sum;
  }
  for (float(&row)[kTileDepth] : product.a) std::fill(row, row + count, term);
  multiply_tile(product);
  const float result = product.d[0][0];
  for (const float(&row)[kTileColumns] : product.d) {
    for (int column = 0; column < kTileColumns; ++column) {  // toward 0
      CHECK(std::isnan(result) || row[column] == (column % 2 == 0 ? result : -result));
    }
  }
  return result;
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
