#pragma once

// What the kernels of pooling and of its backward share.

#include "cuda/assignment_params.cuh"
#include "cuda/primitives/warp.cuh"

namespace cluster_attention::cuda {

struct PoolParams {
  AssignmentParams assignment;  // query: the operands
  Similarity similarity = Similarity::cosine;
  float* centroids = nullptr;     // (batch,M,d)
  const float* before = nullptr;  // (batch,M,d), before a step: the same, or what is kept
  float* output = nullptr;        // the same as they are stored
  Storage storage = Storage::float32;
  float* operands = nullptr;       // (batch,M,d)
  float* bias = nullptr;           // (batch,M), euclidean
  float* origin = nullptr;         // (batch,d)
  double* inverse_norm = nullptr;  // (batch,M), of the starting centroids
  float* input_scale = nullptr;    // (batch,N), cosine: 1 / |x_i|, 0 for a row of zeros
  float* masses = nullptr;         // (batch,M), optional result
  float* step_masses = nullptr;    // (batch,M), optional: of a step
};

constexpr int kPoolThreads = 256;
constexpr int kPoolWarps = kPoolThreads / kWarp;

/// 1 / |row|; 0 for a row of zeros, and for one so short that the quotient is no float. By a warp.
template <typename Element>
__device__ double warp_inverse_norm(int64_t dim, const Element& element) {
  double squared = 0.0;
  for (int64_t d = lane_index(); d < dim; d += kWarp) {
    const double value = element(d);
    squared += value * value;
  }
  const double norm = sqrt(warp_sum(squared));
  constexpr double kLeast = 1.17549435082228750797e-38;
  return norm < kLeast ? 0.0 : 1.0 / norm;
}

}  // namespace cluster_attention::cuda
