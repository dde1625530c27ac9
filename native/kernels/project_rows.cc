#include "native/kernels/project_rows.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kRowsPerTask = 64;

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
                    const GroupedRows<float>& output, Context& context) {
  const int64_t lanes = simd().lanes;
  const int64_t panels = divide_up(weight.columns, lanes);
  const int64_t blocks = divide_up(rows, kRowsPerTask);
  return context.parallel(weight.groups * blocks * panels, [&](int64_t task, int) {
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
    if (columns % simd().width == 0) {
      simd().multiply(a, input.row_stride, 1, count, weight.depth, b, lanes, columns, target,
                      output.row_stride, false);
      return;
    }
    // The product is rounded up to whole vectors, which must not overwrite what lies behind.
    float product[kRowsPerTask * kMaximumLanes];
    simd().multiply(a, input.row_stride, 1, count, weight.depth, b, lanes, columns, product, lanes,
                    false);
    for (int64_t r = 0; r < count; ++r) {
      std::copy(product + r * lanes, product + r * lanes + columns, target + r * output.row_stride);
    }
  });
}

}  // namespace cluster_attention::kernels
