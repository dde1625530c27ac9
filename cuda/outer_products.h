#pragma once

// Sums of outer products, the gradients of weights: for each group (head),
//
//   sums[g][o][i] += scale * sum over the rows r of left[r][g][o] right[r][g][i]
//
// No kernels here.

#include "cuda/rows.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// Rows (rows,groups,columns).
struct OuterOperand {
  const float* data = nullptr;
  int64_t row_stride = 0;
  int64_t group_stride = 0;
  int64_t columns = 0;
  Storage storage = Storage::float32;
  bool round = false;  // to bfloat16
};

struct OuterProductsParams {
  int64_t rows = 0;
  int64_t groups = 1;
  OuterOperand left;
  OuterOperand right;
  const float* weights = nullptr;  // (rows), optional: a row of weight 0 is not read
  float scale = 1.0f;
  float* sums = nullptr;  // (groups, left columns, right columns), float32

  int64_t parts = 1;      // of the rows
  float* part = nullptr;  // (parts, groups, left columns, right columns)
  Flags* flags = nullptr;

  CA_HOST_DEVICE int64_t size() const { return groups * left.columns * right.columns; }
};

/// Two launches.
Status add_outer_products(Session& session, OuterProductsParams params);

}  // namespace cluster_attention::cuda
