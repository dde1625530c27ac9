#include "native/core/softmax_state.h"

#include <vector>

#include "test/native/compare.h"
#include "test/native/data.h"

namespace cluster_attention::test {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

SoftmaxState state_of(const std::vector<float>& logits) {
  SoftmaxState state;
  for (float z : logits) state.merge({z * kLog2E, 1.0f});
  return state;
}

TEST_ONCE("softmax state: merged in any grouping, the log-sum-exp is the same") {
  std::vector<float> logits = random_floats(101, 1);
  for (float& z : logits) z *= 20.0f;
  double maximum = -kInf;
  for (float z : logits) maximum = std::max(maximum, double{z});
  double sum = 0.0;
  for (float z : logits) sum += std::exp(z - maximum);
  const double expected = maximum + std::log(sum);

  for (size_t cut : {0, 1, 50, 100, 101}) {
    SoftmaxState state = state_of({logits.begin(), logits.begin() + cut});
    state.merge(state_of({logits.begin() + cut, logits.end()}));
    CHECK(std::abs(state.logsumexp() - expected) < 1e-5 * std::abs(expected));
  }
}

TEST_ONCE("softmax state: without logits it changes nothing") {
  SoftmaxState empty;
  CHECK_EQUAL(empty.normalizer(), 0.0f);
  CHECK_EQUAL(empty.logsumexp(), -kInf);
  const SoftmaxState::Factors none = empty.merge(SoftmaxState{});
  CHECK_EQUAL(none.mine, 0.0f);
  CHECK_EQUAL(none.other, 0.0f);
  CHECK_EQUAL(empty.sum, 0.0f);

  SoftmaxState state = state_of({1.0f, 2.0f});
  const SoftmaxState before = state;
  const SoftmaxState::Factors right = state.merge(SoftmaxState{});
  CHECK_EQUAL(right.mine, 1.0f);
  CHECK_EQUAL(right.other, 0.0f);
  CHECK_EQUAL(state.maximum, before.maximum);
  CHECK_EQUAL(state.sum, before.sum);
  const SoftmaxState::Factors left = empty.merge(before);
  CHECK_EQUAL(left.mine, 0.0f);
  CHECK_EQUAL(left.other, 1.0f);
  CHECK_EQUAL(empty.sum, before.sum);
}

TEST_ONCE("softmax state: NaN stays") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SoftmaxState state = state_of({1.0f});
  state.merge({nan, 1.0f});
  CHECK(std::isnan(state.logsumexp()));
  state.merge({0.0f, 1.0f});
  CHECK(std::isnan(state.logsumexp()));
  CHECK(std::isnan(state.normalizer()));
}

}  // namespace

}  // namespace cluster_attention::test
