#pragma once

// What the kernels of assignment.cuh read and write, and how they share a sequence out.

#include "cuda/operand_tile.cuh"
#include "cuda/primitives/flags.cuh"
#include "native/core/problem.h"

namespace cluster_attention::cuda {

struct AssignmentParams {
  int64_t sequences = 0;  // B*H
  int64_t heads = 1;
  int64_t centroids = 0;  // M
  int64_t inputs = 0;     // N
  int64_t dim = 0;        // D
  int64_t value_dim = 0;  // E; 0: only labels, masses and the objective are wanted
  Tensor query;           // (B,H,M,D)
  Tensor key;             // (B,H,N,D)
  Tensor value;           // (B,H,N,E)
  const int32_t* centroid_lengths = nullptr;  // (B)
  const int32_t* input_lengths = nullptr;     // (B)
  bool clamp_centroids = false;               // to the real inputs of a sequence

  // Scores: sign (q.k column_scale_i + row_bias_j), k less the origin.
  float sign = 1.0f;
  const float* row_bias = nullptr;      // (B*H,M)
  const float* column_scale = nullptr;  // (B,N)
  const float* origin = nullptr;        // (B,D)

  float exponent = 0.0f;  // >= 0: a_ji is proportional to 2^(exponent score)
  bool hard = false;
  const float* weights = nullptr;  // (B,N)
  bool round_weights = false;      // to bfloat16

  // The label of input i is argmax_j label_scale score_ji + label_bias_j.
  float label_scale = 1.0f;
  const float* label_bias = nullptr;  // (B*H,M)
  int32_t* labels = nullptr;          // (B*H,N)
  bool only_labels = false;           // of all sequences, by assignment_statistics
  /// (B*H,64), active inputs of the first parts; where the sum is 1, the label is 0.
  const int32_t* active_counts = nullptr;

  // Per input, from assignment_statistics to assignment_pass.
  float* maximum = nullptr;     // (B*H,N), of the scores
  float* factor = nullptr;      // (B*H,N), w_i / sum
  int32_t* best = nullptr;      // (B*H,N), hard only
  double* objective = nullptr;  // (B*H,objective_stride), optional
  int64_t objective_stride = 0;

  float* sums = nullptr;    // (B*H,sum_rows,E)
  float* masses = nullptr;  // (B*H,sum_rows)
  int64_t sum_rows = 0;
  int query_tiles = 1;  // in shared memory
  Flags* flags = nullptr;

  __device__ int64_t real_inputs(int64_t batch) const {
    return input_lengths != nullptr ? input_lengths[batch] : inputs;
  }
  __device__ int64_t real_centroids(int64_t batch) const {
    const int64_t real = centroid_lengths != nullptr ? centroid_lengths[batch] : centroids;
    const int64_t limit = real_inputs(batch);
    return clamp_centroids && limit < real ? limit : real;
  }
  __device__ float weight(int64_t batch, int64_t input) const {
    if (weights == nullptr) return 1.0f;
    const float value = weights[batch * inputs + input];
    return round_weights ? round_to_bfloat16(value) : value;
  }
};

CA_HOST_DEVICE inline int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

/// The most parts of a sequence; with several tiles of centroids these share the blocks out.
constexpr int64_t kMaximumInputParts = 64;

/// Parts into which `inputs` > 0 inputs are cut for `centroids` > 0 centroids.
CA_HOST_DEVICE inline int64_t assignment_parts(int64_t inputs, int64_t centroids) {
  constexpr int64_t kInputsPerPart = 64;
  const int64_t most = kMaximumInputParts / tiles_of(centroids);
  const int64_t parts = inputs / kInputsPerPart < most ? inputs / kInputsPerPart : most;
  return parts < 1 ? 1 : parts;
}

/// The most that parts times centroids can be for any real sizes up to these: rows of sums.
CA_HOST_DEVICE inline int64_t assignment_sum_rows(int64_t inputs, int64_t centroids) {
  const int64_t by_inputs = centroids * assignment_parts(inputs, 1);
  const int64_t by_parts =
      centroids > kMaximumInputParts * kTile ? centroids : kMaximumInputParts * kTile;
  return by_inputs < by_parts ? by_inputs : by_parts;
}

/// The most that parts times tiles of centroids can be, likewise, and at least one: blocks of a
/// sequence.
CA_HOST_DEVICE inline int64_t assignment_blocks(int64_t inputs, int64_t centroids) {
  const int64_t tiles = centroids > 0 ? tiles_of(centroids) : 1;
  const int64_t by_inputs = tiles * assignment_parts(inputs, 1);
  const int64_t by_parts = tiles > kMaximumInputParts ? tiles : kMaximumInputParts;
  return by_inputs < by_parts ? by_inputs : by_parts;
}

/// Inputs of one part: [begin, end).
struct InputRange {
  int64_t begin;
  int64_t end;
};

CA_HOST_DEVICE inline InputRange assignment_part(int64_t inputs, int64_t parts, int64_t part) {
  const int64_t size = tiles_of((inputs + parts - 1) / parts) * kTile;
  const int64_t begin = part * size < inputs ? part * size : inputs;
  return {begin, begin + size < inputs ? begin + size : inputs};
}

}  // namespace cluster_attention::cuda
