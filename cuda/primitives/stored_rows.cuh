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
  /// As StoredRows::aligned().
  bool aligned(int64_t bytes) const {
    return StoredRows{data, batch_stride, head_stride, row_stride, is_bfloat16}.aligned(bytes);
  }
};

/// Eight floats from a multiple of 16 bytes on.
__device__ inline void load_eight_floats(const void* from, float (&values)[8]) {
  const float4 first = static_cast<const float4*>(from)[0];
  const float4 second = static_cast<const float4*>(from)[1];
  values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
  values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
}

/// Eight bfloat16 from a multiple of 16 bytes on.
__device__ inline void load_eight_bfloat16(const void* from, float (&values)[8]) {
  const uint4 words = *static_cast<const uint4*>(from);
  values[0] = low_of(words.x), values[1] = high_of(words.x);
  values[2] = low_of(words.y), values[3] = high_of(words.y);
  values[4] = low_of(words.z), values[5] = high_of(words.z);
  values[6] = low_of(words.w), values[7] = high_of(words.w);
}

/// Elements [at, at + 8), those from `count` on as 0; by 16 bytes where they lie so.
__device__ inline void load_eight(const StoredRows& rows, int64_t at, int count,
                                  float (&values)[8]) {
  const int64_t bytes = rows.is_bfloat16 ? 2 : 4;
  const char* from = static_cast<const char*>(rows.data) + at * bytes;
  if (count < 8 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    for (int i = 0; i < 8; ++i) values[i] = i < count ? rows.load(at + i) : 0.0f;
  } else if (rows.is_bfloat16) {
    load_eight_bfloat16(from, values);
  } else {
    load_eight_floats(from, values);
  }
}

/// Elements at, at + 1, of which `count` are there; together where they lie so.
__device__ inline void store_pair(const StoredOutput& rows, int64_t at, int count, float first,
                                  float second) {
  const int64_t bytes = rows.is_bfloat16 ? 2 : 4;
  char* to = static_cast<char*>(rows.data) + at * bytes;
  if (count < 2 || reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(2 * bytes) != 0) {
    rows.store(at, first);
    if (count > 1) rows.store(at + 1, second);
  } else if (rows.is_bfloat16) {
    *reinterpret_cast<uint32_t*>(to) = pack_bfloat16(first, second);
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }
}

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
