#pragma once

#include <cstdint>

#include "native/core/host_device.h"

namespace cluster_attention {

/// Rows of a (batch, heads, rows, columns) tensor; a row is contiguous, the rest is strides, so
/// that BHLD, BLHD and "the same keys for every head" (head_stride 0) are read by the same code.
/// Strides count elements.
template <typename T>
struct RowView {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  CA_HOST_DEVICE T* sequence(int64_t batch, int64_t head) const {
    return data + batch * batch_stride + head * head_stride;
  }
  CA_HOST_DEVICE T* row(int64_t batch, int64_t head, int64_t row) const {
    return sequence(batch, head) + row * row_stride;
  }
};

using InputRows = RowView<const float>;
using OutputRows = RowView<float>;

enum class Layout : int32_t { bhld, blhd };

/// View of a dense array in one of the two public layouts.
template <typename T>
RowView<T> dense_rows(T* data, Layout layout, int64_t heads, int64_t rows, int64_t columns) {
  if (layout == Layout::bhld) return {data, heads * rows * columns, rows * columns, columns};
  return {data, heads * rows * columns, columns, heads * columns};
}

/// View of a dense (batch, rows, columns) array: one head.
template <typename T>
RowView<T> dense_rows(T* data, int64_t rows, int64_t columns) {
  return {data, rows * columns, 0, columns};
}

/// lengths[batch] where lengths are given, else the full length.
CA_HOST_DEVICE inline int64_t real_length(const int32_t* lengths, int64_t batch, int64_t full) {
  return lengths != nullptr ? lengths[batch] : full;
}

}  // namespace cluster_attention
