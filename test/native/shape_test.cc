#include "native/core/shape.h"

#include <limits>

#include "test/native/harness.h"

namespace cluster_attention::test {

namespace {

constexpr int64_t kMaximum = std::numeric_limits<int64_t>::max();

TEST_ONCE("shape: products that leave int64 are refused") {
  CHECK_EQUAL(checked_size(2, 3, 5), 30);
  CHECK_EQUAL(checked_size(), 1);
  CHECK_EQUAL(checked_size(0, kMaximum, kMaximum), 0);
  CHECK_EQUAL(checked_size(kMaximum, 1), kMaximum);
  CHECK_EQUAL(checked_size(kMaximum, 2), -1);
  CHECK_EQUAL(checked_size(int64_t{1} << 32, int64_t{1} << 31), -1);
  CHECK_EQUAL(checked_size(int64_t{1} << 31, int64_t{1} << 31), int64_t{1} << 62);
  CHECK_EQUAL(checked_size(-1, 5), -1);
}

TEST_ONCE("shape: split covers everything once, in nearly equal parts") {
  for (int64_t total : {0, 1, 5, 47, 48, 49, 1000}) {
    for (int64_t parts : {1, 2, 3, 7, 64}) {
      int64_t next = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const Range range = split(total, parts, part);
        CHECK_EQUAL(range.begin, next);
        CHECK(range.size() >= total / parts && range.size() <= divide_up(total, parts));
        next = range.end;
      }
      CHECK_EQUAL(next, total);
    }
  }
}

TEST_ONCE("shape: rounding up") {
  CHECK_EQUAL(divide_up(0, 8), 0);
  CHECK_EQUAL(divide_up(1, 8), 1);
  CHECK_EQUAL(divide_up(8, 8), 1);
  CHECK_EQUAL(round_up(9, 8), 16);
}

}  // namespace

}  // namespace cluster_attention::test
