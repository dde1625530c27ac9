#pragma once

// Dense projections: output[r][c] = sum_k input[r][k] * weight[k][c] for many rows and one weight,
// or for one weight per group (head), each group having its own columns of the rows.
//
// Method: the weight is packed once into panels of simd().lanes columns, zero-padded; tasks are
// blocks of rows times one panel. fp32, sums over k in blocks that are added in order.

#include <cstdint>

#include "native/core/context.h"

namespace cluster_attention::kernels {

/// One (depth, columns) matrix per group, in panels.
struct PackedWeight {
  int64_t groups = 0;
  int64_t depth = 0;
  int64_t columns = 0;
  const float* panels = nullptr;  // (groups, panels, depth, lanes)
};

/// weight[k][c] = source[c * depth + k]: the rows of `source` (groups,columns,depth) are outputs,
/// as in a linear layer.
Status pack_weight(const float* source, int64_t groups, int64_t columns, int64_t depth,
                   Context& context, PackedWeight& weight);

/// weight[k][c] = source[k * columns + c], `source` (groups,depth,columns).
Status pack_transposed_weight(const float* source, int64_t groups, int64_t depth, int64_t columns,
                              Context& context, PackedWeight& weight);

/// Rows of which group g takes `depth` (or writes `columns`) elements from g * group_stride.
template <typename T>
struct GroupedRows {
  T* data = nullptr;
  int64_t row_stride = 0;
  int64_t group_stride = 0;
  int64_t element_stride = 1;  // of the input alone: another one reads a transposed matrix
};

struct ProjectionMode {
  bool accumulate = false;        // adds to the output
  bool watch_non_finite = false;  // tells the context of a NaN or Inf in the output
};

Status project_rows(const GroupedRows<const float>& input, int64_t rows, const PackedWeight& weight,
                    const GroupedRows<float>& output, Context& context,
                    const ProjectionMode& mode = {});

}  // namespace cluster_attention::kernels
