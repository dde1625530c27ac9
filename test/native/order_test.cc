#include "native/core/order.h"

#include <algorithm>
#include <limits>

#include "test/native/compare.h"
#include "test/native/data.h"

namespace cluster_attention::test {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_ONCE("order: keys are ordered as the values are, NaN above all") {
  const float ascending[] = {-kInf, -3e38f, -1.0f, -1e-40f, 0.0f, 1e-40f, 1.0f, 3e38f, kInf, kNaN};
  for (size_t i = 1; i < std::size(ascending); ++i) {
    CHECK(ordered_key(ascending[i - 1]) < ordered_key(ascending[i]));
  }
  CHECK_EQUAL(ordered_key(-0.0f), ordered_key(0.0f));
  CHECK_EQUAL(ordered_key(-kNaN), ordered_key(kNaN));
}

TEST_ONCE("order: a key gives its value back") {
  for (float value : random_floats(1000, 1)) CHECK_EQUAL(value_of_key(ordered_key(value)), value);
  for (float value : {-kInf, kInf, 0.0f}) CHECK_EQUAL(value_of_key(ordered_key(value)), value);
  CHECK(std::isnan(value_of_key(ordered_key(kNaN))));
}

TEST_ONCE("order: the larger candidate is the better score, then the lower index") {
  CHECK(make_candidate(2.0f, 7) > make_candidate(1.0f, 3));
  CHECK(make_candidate(1.0f, 3) > make_candidate(1.0f, 4));
  CHECK(make_candidate(-0.0f, 3) > make_candidate(0.0f, 4));
  for (int32_t index : {0, 1, 123456789, std::numeric_limits<int32_t>::max()}) {
    const Candidate candidate = make_candidate(-1.5f, index);
    CHECK_EQUAL(candidate_score(candidate), -1.5f);
    CHECK_EQUAL(candidate_index(candidate), index);
  }
}

}  // namespace

}  // namespace cluster_attention::test
