#pragma once

// Sums of outer products, the gradients of weights: for each group (head),
//
//     sums[g][o][i] (+)= sum over the rows r, in order, of left[r][g][o] right[r][g][i]
//
// Method: tasks are blocks of `left` columns times panels of simd().lanes `right` columns, each of
// which runs through all rows. fp32; blocks of 128 rows are summed in registers and added in order.

#include <cstdint>

#include "native/core/context.h"
#include "native/kernels/project_rows.h"

namespace cluster_attention::kernels {

struct OuterProducts {
  int64_t rows = 0;
  int64_t groups = 1;
  GroupedRows<const float> left;
  int64_t left_columns = 0;
  GroupedRows<const float> right;
  int64_t right_columns = 0;
  const float* weights = nullptr;  // (rows), optional: a row of weight 0 is not read of `right`
};

Status sum_outer_products(const OuterProducts& products, bool accumulate, Context& context,
                          float* sums);  // (groups, left columns, right columns)

}  // namespace cluster_attention::kernels
