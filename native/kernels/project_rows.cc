#include "native/kernels/project_rows.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kRowsPerTask = 64;
/// A panel of this depth stays in the first-level cache while the rows of a task pass by; the sums
/// of the blocks are added in order.
constexpr int64_t kDepthBlock = 256;

void put_row(const float* source, int64_t columns, bool accumulate, float* target) {
  for (int64_t c = 0; c < columns; ++c) {
    target[c] = accumulate ? target[c] + source[c] : source[c];
  }
}

/// Allocates the panels and calls fill(group, first column, columns, panel) for each.
template <typename Fill>
Status fill_panels(PackedWeight& weight, Context& context, Fill fill) {
  const int64_t lanes = simd().lanes;
  const int64_t panels = divide_up(weight.columns, lanes);
  const int64_t panel_size = weight.depth * lanes;
  float* memory = context.workspace().allocate<float>(weight.groups * panels * panel_size);
  if (memory == nullptr) return Status::out_of_memory();
  weight.panels = memory;
  return context.parallel(weight.groups * panels, [&](int64_t task, int) {
    const int64_t first = task % panels * lanes;
    fill(task / panels, first, std::min(lanes, weight.columns - first), memory + task * panel_size);
  });
}

}  // namespace

Status pack_weight(const float* source, int64_t groups, int64_t columns, int64_t depth,
                   Context& context, PackedWeight& weight) {
  weight = {groups, depth, columns, nullptr};
  return fill_panels(weight, context,
                     [=](int64_t group, int64_t first, int64_t count, float* panel) {
                       simd().pack(source + (group * columns + first) * depth, depth, nullptr,
                                   count, depth, panel);
                     });
}

Status pack_transposed_weight(const float* source, int64_t groups, int64_t depth, int64_t columns,
                              Context& context, PackedWeight& weight) {
  weight = {groups, depth, columns, nullptr};
  const int64_t lanes = simd().lanes;
  return fill_panels(weight, context,
                     [=](int64_t group, int64_t first, int64_t count, float* panel) {
                       for (int64_t k = 0; k < depth; ++k, panel += lanes) {
                         const float* row = source + (group * depth + k) * columns + first;
                         std::copy(row, row + count, panel);
                         std::fill(panel + count, panel + lanes, 0.0f);
                       }
                     });
}

Status project_rows(const GroupedRows<const float>& input, int64_t rows, const PackedWeight& weight,
                    const GroupedRows<float>& output, Context& context,
                    const ProjectionMode& mode) {
  const int64_t lanes = simd().lanes;
  const int64_t panels = divide_up(weight.columns, lanes);
  const int64_t blocks = divide_up(rows, kRowsPerTask);
  const double operations = 2.0 * static_cast<double>(weight.groups * rows) *
                            static_cast<double>(weight.columns * weight.depth);
  const auto project = [&](int64_t task, int) {
    // (rows, depth) x (depth, columns): consecutive tasks share the block of rows
    const int64_t group = task / (blocks * panels);
    const int64_t first_row = task / panels % blocks * kRowsPerTask;
    const int64_t panel = task % panels;
    const int64_t count = std::min(kRowsPerTask, rows - first_row);
    const int64_t first = panel * lanes;
    const int64_t columns = std::min(lanes, weight.columns - first);
    const float* a = input.data + first_row * input.row_stride + group * input.group_stride;
    const float* b = weight.panels + (group * panels + panel) * weight.depth * lanes;
    float* target =
        output.data + first_row * output.row_stride + group * output.group_stride + first;
    // The product is rounded up to whole vectors, which must not overwrite what lies behind; and
    // one of several blocks is finished before it is added to what was there.
    float product[kRowsPerTask * kMaximumLanes];
    const bool direct =
        columns % simd().width == 0 && !(mode.accumulate && weight.depth > kDepthBlock);
    float* sums = direct ? target : product;
    const int64_t stride = direct ? output.row_stride : lanes;
    for (int64_t k = 0; k < weight.depth; k += kDepthBlock) {
      simd().multiply(a + k * input.element_stride, input.row_stride, input.element_stride, count,
                      std::min(kDepthBlock, weight.depth - k), b + k * lanes, lanes, columns, sums,
                      stride, k > 0 || (direct && mode.accumulate));
    }
    for (int64_t r = 0; r < count; ++r) {
      float* row = target + r * output.row_stride;
      if (!direct) put_row(product + r * lanes, columns, mode.accumulate, row);
      if (mode.watch_non_finite && !all_finite(row, columns)) context.mark_non_finite();
    }
  };
  return context.parallel(weight.groups * blocks * panels, project, operations);
}

}  // namespace cluster_attention::kernels
