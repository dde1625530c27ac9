#pragma once

// Dense projections: output[r][c] = sum_k input[r][k] weight[c][k] for many rows and one weight, or
// for one weight per group (head), each group having its own columns of the rows; times a step, or
// added to the output. No kernels here.

#include "cuda/rows.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

struct ProjectionParams {
  int64_t rows = 0;
  int64_t columns = 0;  // of a group
  int64_t depth = 0;
  int64_t groups = 1;
  // Input (rows,groups,depth): element k of row r of group g.
  const float* input = nullptr;
  int64_t input_row_stride = 0;
  int64_t input_group_stride = 0;
  Storage input_storage = Storage::float32;
  bool round_input = false;  // to bfloat16
  // Weight (groups,columns,depth).
  const float* weight = nullptr;
  int64_t weight_group_stride = 0;
  int64_t weight_column_stride = 0;
  int64_t weight_element_stride = 1;
  bool round_weight = false;
  // Output (rows,groups,columns), float32.
  float* output = nullptr;
  int64_t output_row_stride = 0;
  int64_t output_group_stride = 0;
  float step = 1.0f;            // multiplies the product
  const float* base = nullptr;  // to which it is added, laid out as the output; optional
  float* stored = nullptr;      // the output once more, as the caller stores it; optional
  Storage storage = Storage::float32;
  bool watch = false;  // for NaN and Inf in the output
  Flags* flags = nullptr;
};

/// One launch.
Status launch_projection(Session& session, ProjectionParams params);

}  // namespace cluster_attention::cuda
