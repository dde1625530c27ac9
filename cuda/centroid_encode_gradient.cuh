#pragma once

// How the backward of the learned layer begins and ends.

#include "cuda/primitives/flags.cuh"
#include "cuda/rows.cuh"

namespace cluster_attention::cuda {

constexpr int kEncodeGradientThreads = 256;

struct EncodeOpeningParams {
  int64_t batch = 0;
  int64_t centroids = 0;  // M
  int64_t dim = 0;        // d
  Tensor output_gradient;
  const int32_t* real_centroids = nullptr;  // (batch), null: all
  float* gradient = nullptr;                // (batch,M,d)
};

/// The gradient by u of the centroids that are real, 0 for the others. One thread per element.
__global__ void __launch_bounds__(kEncodeGradientThreads)
    open_encode_gradient(const EncodeOpeningParams params) {
  // output_gradient: (batch,M,d) -> gradient: (batch,M,d)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kEncodeGradientThreads + threadIdx.x;
  if (index >= params.batch * params.centroids * params.dim) return;
  const int64_t j = index / params.dim % params.centroids;
  const int64_t batch = index / params.dim / params.centroids;
  const bool real = params.real_centroids == nullptr || j < params.real_centroids[batch];
  const Rows rows(params.output_gradient, batch, 0);
  params.gradient[index] = real ? rows.element(j, index % params.dim) : 0.0f;
}

struct EncodeResultParams {
  int64_t count = 0;
  const float* sums = nullptr;
  float* result = nullptr;  // optional
  Storage storage = Storage::float32;
  Flags* flags = nullptr;
};

/// A gradient as it is stored. One thread per element.
__global__ void __launch_bounds__(kEncodeGradientThreads)
    close_encode_gradient(const EncodeResultParams params) {
  // sums: (count) -> result: (count)
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kEncodeGradientThreads + threadIdx.x;
  if (index >= params.count) return;
  const float value = params.sums[index];
  if (params.result != nullptr) store_element(params.result, params.storage, index, value);
  if (!(fabsf(value) < INFINITY)) mark_non_finite(params.flags);
}

}  // namespace cluster_attention::cuda
