#pragma once

// Views of arrays that hold float or bfloat16, which is known at run time only. Offsets count
// elements.

#include "cuda/primitives/bfloat16.cuh"

namespace cluster_attention::cuda {

/// Rows of a (batch, heads, rows, columns) tensor, see native/core/tensor.h.
struct StoredRows {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  bool is_bfloat16 = false;

  CA_HOST_DEVICE int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return batch * batch_stride + head * head_stride + row * row_stride;
  }
  __device__ float load(int64_t at) const {
    return is_bfloat16 ? to_float(static_cast<const bfloat16*>(data)[at])
                       : static_cast<const float*>(data)[at];
  }
  /// Whether every row begins at a multiple of `bytes`.
  bool aligned(int64_t bytes) const {
    const int64_t elements = bytes / (is_bfloat16 ? 2 : 4);
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
           batch_stride % elements == 0 && head_stride % elements == 0 &&
           row_stride % elements == 0;
  }
};

struct StoredOutput {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  bool is_bfloat16 = false;

  CA_HOST_DEVICE int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return batch * batch_stride + head * head_stride + row * row_stride;
  }
  __device__ void store(int64_t at, float value) const {
    if (is_bfloat16) {
      static_cast<bfloat16*>(data)[at] = to_bfloat16(value);
    } else {
      static_cast<float*>(data)[at] = value;
    }
  }
};

/// Of a view as the problems have it.
template <typename View>
StoredRows stored_rows(const View& view, bool is_bfloat16) {
  return {view.data, view.batch_stride, view.head_stride, view.row_stride, is_bfloat16};
}
template <typename View>
StoredOutput stored_output(const View& view, bool is_bfloat16) {
  return {view.data, view.batch_stride, view.head_stride, view.row_stride, is_bfloat16};
}

}  // namespace cluster_attention::cuda
