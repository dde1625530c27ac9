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

/// How rows are brought to shared memory. The last two: strides are below 2^31, so that the product
/// with a row is one instruction.
enum class RowAccess {
  any,       // found out when they are read
  elements,  // one by one
  vectors,   // floats, four at a time
  copies     // bfloat16 that are used as they are, eight at a time
};

/// What all rows of a tensor, `width` elements wide, allow.
inline RowAccess access_of(const Tensor& rows, int64_t width) {
  const int64_t bytes = storage_bytes(rows.storage);
  const int64_t strides = rows.batch_stride | rows.head_stride | rows.row_stride | width;
  const bool near = rows.row_stride == static_cast<int32_t>(rows.row_stride);
  if (reinterpret_cast<uintptr_t>(rows.data) % 16 != 0 || strides * bytes % 16 != 0 || !near) {
    return RowAccess::elements;
  }
  return rows.storage == Storage::bfloat16 ? RowAccess::copies : RowAccess::vectors;
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

  /// For `count` elements from element `first` on: what strides and alignment allow.
  __device__ RowAccess access(int64_t first, int count) const {
    const bool is_bfloat16 = storage == Storage::bfloat16;
    const int64_t bytes = is_bfloat16 ? 2 : 4;
    const auto start = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data));
    int64_t places = (start + (offset + first) * bytes) | (stride * bytes) | (count * bytes);
    if (!is_bfloat16 && extra != nullptr) {
      places |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(extra)) + first * bytes;
    }
    const bool near = stride == static_cast<int32_t>(stride);
    if (places % 16 != 0 || element_stride != 1 || !near) return RowAccess::elements;
    if (!is_bfloat16) return RowAccess::vectors;
    return origin == nullptr ? RowAccess::copies : RowAccess::elements;
  }
  /// Elements before a row that is not read one by one.
  __device__ int64_t near_row(int32_t row) const {
    return static_cast<int64_t>(row) * static_cast<int32_t>(stride);
  }
  /// A row of floats, likewise.
  __device__ const float* plain_row(int32_t row) const {
    return extra != nullptr && row == kExtraRow ? extra : data + offset + near_row(row);
  }
  __device__ float element(int64_t row, int64_t column) const {
    float value =
        extra != nullptr && row == kExtraRow
            ? extra[column]
            : load_element(data, storage, offset + row * stride + column * element_stride);
    if (round) value = round_to_bfloat16(value);
    return origin != nullptr ? value - origin[column] : value;
  }
};

}  // namespace cluster_attention::cuda
