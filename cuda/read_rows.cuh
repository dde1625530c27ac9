#pragma once

// Elements of the arrays that the caller stores as float32 or bfloat16 (Call::storage). Kernels are
// instantiated for how they read; everything is computed in fp32 whatever the storage.

#include <type_traits>

#include "cuda/backend.h"
#include "cuda/primitives/bfloat16.cuh"

namespace cluster_attention::cuda {

/// float32; float32 that precision: 'bfloat16' rounds on reading; bfloat16.
enum class Read { float32, rounded, bfloat16 };

inline Read read_of(const Call& call) {
  if (call.storage == Storage::bfloat16) return Read::bfloat16;
  return call.precision == Precision::bfloat16 ? Read::rounded : Read::float32;
}

/// body(std::integral_constant<Read, r>()) for the call's way of reading.
template <typename Body>
Status with_read(const Call& call, Body&& body) {
  switch (read_of(call)) {
    case Read::float32:
      return body(std::integral_constant<Read, Read::float32>());
    case Read::rounded:
      return body(std::integral_constant<Read, Read::rounded>());
    case Read::bfloat16:
      return body(std::integral_constant<Read, Read::bfloat16>());
  }
  return {StatusCode::unsupported, "storage", -1};
}

__device__ inline bool is_finite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

/// Element `offset` of an array whose pointer stands as one to float.
template <Read kRead>
__device__ float read(const float* data, int64_t offset) {
  if constexpr (kRead == Read::bfloat16) {
    return to_float(reinterpret_cast<const bfloat16*>(data)[offset]);
  } else if constexpr (kRead == Read::rounded) {
    return round_to_bfloat16(data[offset]);
  } else {
    return data[offset];
  }
}

/// Element of a result that is there already: no rounding but that of its storage.
template <Read kRead>
__device__ float read_stored(const float* data, int64_t offset) {
  return read < kRead == Read::bfloat16 ? Read::bfloat16 : Read::float32 > (data, offset);
}

/// Stores an element of a result: bfloat16 where the inputs are stored so. False when what was
/// stored is NaN or Inf.
template <Read kRead>
__device__ bool write(float* data, int64_t offset, float value) {
  if constexpr (kRead == Read::bfloat16) {
    const bfloat16 stored = to_bfloat16(value);
    reinterpret_cast<bfloat16*>(data)[offset] = stored;
    return is_finite(to_float(stored));
  } else {
    data[offset] = value;
    return is_finite(value);
  }
}

/// Elements before row `row`; strides of a RowView count elements, whatever their storage.
template <typename T>
__device__ int64_t row_offset(const RowView<T>& view, int64_t batch, int64_t head, int64_t row) {
  return batch * view.batch_stride + head * view.head_stride + row * view.row_stride;
}

}  // namespace cluster_attention::cuda
