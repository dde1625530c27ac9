#include "native/kernels/outer_products.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kLeftColumns = 64;
constexpr int64_t kRowsPerBlock = 128;

/// Rows [first, first + count) of `columns` columns from `column` on, filled up with zeros.
void copy_panel(const OuterProducts& products, int64_t first, int64_t count, int64_t column,
                int64_t columns, float* panel) {
  const int64_t lanes = simd().lanes;
  for (int64_t r = 0; r < count; ++r, panel += lanes) {
    const bool read = products.weights == nullptr || products.weights[first + r] != 0.0f;
    const float* row = products.right.data + (first + r) * products.right.row_stride + column;
    const int64_t filled = read ? columns : 0;
    std::copy_n(row, filled, panel);
    std::fill(panel + filled, panel + lanes, 0.0f);
  }
}

}  // namespace

Status sum_outer_products(const OuterProducts& products, bool accumulate, Context& context,
                          float* sums) {
  const int64_t lanes = simd().lanes;
  const int64_t blocks = divide_up(products.left_columns, kLeftColumns);
  const int64_t panels = divide_up(products.right_columns, lanes);
  const double operations = 2.0 * static_cast<double>(products.rows * products.groups) *
                            static_cast<double>(products.left_columns * products.right_columns);
  const auto sum = [&](int64_t task, int) {
    // left: (rows, left columns), right: (rows, right columns) -> (left columns, right columns)
    const int64_t group = task / (blocks * panels);
    const int64_t left = task / panels % blocks * kLeftColumns;
    const int64_t right = task % panels * lanes;
    const int64_t left_count = std::min(kLeftColumns, products.left_columns - left);
    const int64_t right_count = std::min(lanes, products.right_columns - right);
    float panel[kRowsPerBlock * kMaximumLanes];
    float product[kLeftColumns * kMaximumLanes] = {};
    for (int64_t first = 0; first < products.rows && !context.cancelled(); first += kRowsPerBlock) {
      const int64_t count = std::min(kRowsPerBlock, products.rows - first);
      copy_panel(products, first, count, group * products.right.group_stride + right, right_count,
                 panel);
      const float* a = products.left.data + first * products.left.row_stride +
                       group * products.left.group_stride + left;
      simd().multiply(a, 1, products.left.row_stride, left_count, count, panel, lanes, right_count,
                      product, lanes, true);
    }
    for (int64_t o = 0; o < left_count; ++o) {
      float* row =
          sums + (group * products.left_columns + left + o) * products.right_columns + right;
      const float* source = product + o * lanes;
      for (int64_t i = 0; i < right_count; ++i)
        row[i] = accumulate ? row[i] + source[i] : source[i];
    }
  };
  return context.parallel(products.groups * blocks * panels, sum, operations);
}

}  // namespace cluster_attention::kernels
