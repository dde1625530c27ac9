#pragma once

// Run-time widths to the compiled ones. Rows are padded with zeros in shared memory.

#include <cstdint>
#include <type_traits>

#include "native/core/status.h"

namespace cluster_attention::cuda {

constexpr int64_t kMaximumWidth = 256;

/// body(width) with the least compiled width that holds `columns`, as an integral_constant.
template <typename Body>
Status with_width(int64_t columns, const char* argument, Body body) {
  if (columns <= 32) return body(std::integral_constant<int, 32>());
  if (columns <= 64) return body(std::integral_constant<int, 64>());
  if (columns <= 128) return body(std::integral_constant<int, 128>());
  if (columns <= kMaximumWidth) return body(std::integral_constant<int, 256>());
  return {StatusCode::unsupported, argument, -1};
}

/// The least width for head_dim and value_dim together.
template <typename Body>
Status with_width(int64_t head_dim, int64_t value_dim, Body body) {
  const bool head = head_dim > value_dim;
  return with_width(head ? head_dim : value_dim, head ? "headDim" : "valueDim", body);
}

/// body(split) with std::true_type where operands are cut in two parts.
template <typename Body>
Status with_split(bool split, Body body) {
  return split ? body(std::true_type()) : body(std::false_type());
}

}  // namespace cluster_attention::cuda
