#pragma once

#include <cstdint>
#include <limits>

#include "native/core/host_device.h"

namespace cluster_attention {

/// Product of non-negative sizes; false when it leaves int64_t.
inline bool checked_multiply(int64_t a, int64_t b, int64_t& product) {
  if (a < 0 || b < 0) return false;
  if (a != 0 && b > std::numeric_limits<int64_t>::max() / a) return false;
  product = a * b;
  return true;
}

/// Number of elements of a dense array with these dimensions; -1 when it leaves int64_t.
template <typename... Sizes>
int64_t checked_size(Sizes... sizes) {
  int64_t product = 1;
  bool fits = true;
  ((fits = fits && checked_multiply(product, static_cast<int64_t>(sizes), product)), ...);
  return fits ? product : -1;
}

CA_HOST_DEVICE inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
CA_HOST_DEVICE inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

/// Part `part` of `total` items cut into `parts` nearly equal ranges: [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  CA_HOST_DEVICE int64_t size() const { return end - begin; }
};

CA_HOST_DEVICE inline Range split(int64_t total, int64_t parts, int64_t part) {
  const int64_t quotient = total / parts;
  const int64_t remainder = total % parts;
  const int64_t begin = part * quotient + (part < remainder ? part : remainder);
  return {begin, begin + quotient + (part < remainder ? 1 : 0)};
}

}  // namespace cluster_attention
