#pragma once

// Rows of one sequence in device memory, read or written as float however they are stored.

#include "cuda/backend.h"
#include "cuda/primitives/bfloat16.cuh"

namespace cluster_attention::cuda {

/// One element of an array of floats or bfloat16.
__device__ inline float load_element(const float* data, Storage storage, int64_t index) {
  if (storage == Storage::bfloat16) {
    return to_float(reinterpret_cast<const bfloat16*>(data)[index]);
  }
  return data[index];
}
__device__ inline void store_element(float* data, Storage storage, int64_t index, float value) {
  if (storage == Storage::bfloat16) {
    reinterpret_cast<bfloat16*>(data)[index] = to_bfloat16(value);
  } else {
    data[index] = value;
  }
}

/// A tensor (batch, heads, rows, columns) in some storage: strides count elements.
struct Tensor {
  const float* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  Storage storage = Storage::float32;
  bool round = false;  // to bfloat16 on reading: precision 'bfloat16' where sums stay exact

  CA_HOST_DEVICE int64_t offset(int64_t batch, int64_t head) const {
    return batch * batch_stride + head * head_stride;
  }
};

inline Tensor tensor_of(const InputRows& rows, Storage storage) {
  return {rows.data, rows.batch_stride, rows.head_stride, rows.row_stride, storage, false};
}

/// Places that are no row of a tensor.
constexpr int32_t kNoRow = -1;
constexpr int32_t kExtraRow = -2;  // Rows::extra

/// The rows of one sequence of a tensor.
struct Rows {
  const float* data = nullptr;
  int64_t offset = 0;  // of row 0
  int64_t stride = 0;
  int64_t element_stride = 1;
  Storage storage = Storage::float32;
  bool round = false;
  const float* origin = nullptr;  // subtracted from every row
  const float* extra = nullptr;   // one row more, from elsewhere

  __device__ Rows() {}
  __device__ Rows(const Tensor& tensor, int64_t batch, int64_t head,
                  const float* subtracted = nullptr)
      : data(tensor.data),
        offset(tensor.offset(batch, head)),
        stride(tensor.row_stride),
        storage(tensor.storage),
        round(tensor.round),
        origin(subtracted) {}

  /// Whether elements are floats side by side that are used as they are.
  __device__ bool is_plain() const {
    return storage == Storage::float32 && !round && origin == nullptr && element_stride == 1;
  }
  __device__ const float* plain_row(int64_t row) const {
    return row == kExtraRow ? extra : data + offset + row * stride;
  }
  __device__ float element(int64_t row, int64_t column) const {
    float value = row == kExtraRow ? extra[column]
                                   : load_element(data, storage,
                                                  offset + row * stride + column * element_stride);
    if (round) value = round_to_bfloat16(value);
    return origin != nullptr ? value - origin[column] : value;
  }
};

}  // namespace cluster_attention::cuda
