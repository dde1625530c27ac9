#include "native/kernels/assignment.h"

#include <algorithm>
#include <limits>

#include "native/core/shape.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

bool AssignmentSumsArray::allocate(int64_t count, int64_t centroids, int64_t value_dim,
                                   bool with_masses, Workspace& workspace) {
  centroids_ = centroids;
  value_dim_ = value_dim;
  width_ = simd().width;
  columns_ = round_up(value_dim, width_);
  values_ = workspace.allocate<float>(count * centroids * columns_);
  if (with_masses) masses_ = workspace.allocate<float>(count * centroids * width_);
  return values_ != nullptr && (masses_ != nullptr || !with_masses);
}

void AssignmentSumsArray::total_values(int64_t first, int64_t count, int64_t centroid,
                                       float* values) const {
  std::fill(values, values + value_dim_, 0.0f);
  for (int64_t i = first; i < first + count; ++i) {
    const float* row = at(i).values + centroid * columns_;
    for (int64_t e = 0; e < value_dim_; ++e) values[e] += row[e];
  }
}

float AssignmentSumsArray::total_mass(int64_t first, int64_t count, int64_t centroid) const {
  float mass = 0.0f;
  for (int64_t i = first; i < first + count; ++i) mass += at(i).masses[centroid * width_];
  return mass;
}

bool AssignmentTile::allocate(int64_t centroids, int64_t dim, int64_t value_dim,
                              Workspace& workspace) {
  const int64_t lanes = simd().lanes;
  const int64_t width = simd().width;
  packed = workspace.allocate<float>(tile_size(dim, lanes));
  scores = workspace.allocate<float>(tile_size(centroids, lanes));
  maximum = workspace.allocate<float>(4 * lanes);
  best_row = workspace.allocate<int32_t>(lanes);
  values = workspace.allocate_zeroed<float>(lanes * round_up(value_dim, width));
  value_weights = workspace.allocate_zeroed<float>(lanes * width);
  if (packed == nullptr || scores == nullptr || maximum == nullptr || best_row == nullptr ||
      values == nullptr || value_weights == nullptr) {
    return false;
  }
  sum = maximum + lanes;
  minimum = sum + lanes;
  best = minimum + lanes;
  for (int64_t i = 0; i < lanes; ++i) value_weights[i * width] = 1.0f;
  return true;
}

void AssignmentTile::find_best(int64_t centroids, int64_t columns, float scale, const float* bias) {
  const int64_t lanes = simd().lanes;
  std::fill(best, best + lanes, -std::numeric_limits<float>::infinity());
  std::fill(best_row, best_row + lanes, 0);
  simd().argmax_rows(scores, centroids, columns, scale, bias, 0, best, best_row);
}

TileRows tile_rows(const float* rows, int64_t row_stride, const int32_t* index,
                   const float* weights, int64_t first, int64_t columns, int64_t dim,
                   const AssignmentTile& tile) {
  const int64_t width = simd().width;
  if (index == nullptr && weights == nullptr && dim % width == 0) {
    return {rows + first * row_stride, row_stride};
  }
  const int64_t stride = round_up(dim, width);
  for (int64_t i = 0; i < columns; ++i) {
    const float* row = rows + (index != nullptr ? index[first + i] : first + i) * row_stride;
    const float weight = weights != nullptr ? weights[first + i] : 1.0f;
    for (int64_t e = 0; e < dim; ++e) tile.values[i * stride + e] = row[e] * weight;
    tile.value_weights[i * width] = weight;
  }
  return {tile.values, stride};
}

void add_tile(const AssignmentTile& tile, int64_t centroids, int64_t columns, const TileRows& rows,
              int64_t value_dim, bool accumulate, const AssignmentSums& sums) {
  // assignments (M, lanes) x values (columns, value dim)
  const int64_t lanes = simd().lanes;
  const int64_t width = simd().width;
  simd().multiply(tile.scores, lanes, 1, centroids, columns, rows.rows, rows.stride, value_dim,
                  sums.values, round_up(value_dim, width), accumulate);
  if (sums.masses == nullptr) return;
  simd().multiply(tile.scores, lanes, 1, centroids, columns, tile.value_weights, width, 1,
                  sums.masses, width, accumulate);
}

void add_weighted_rows(const float* rows, int64_t row_stride, int64_t count, int64_t dim,
                       const float* weights, int64_t columns, bool accumulate, float* sum) {
  const int64_t lanes = simd().lanes;
  for (int64_t j = 0; j < count; j += kRowsPerSum) {
    simd().multiply(rows + j * row_stride, 1, row_stride, dim, std::min(kRowsPerSum, count - j),
                    weights + j * lanes, lanes, columns, sum, lanes, accumulate || j > 0);
  }
}

}  // namespace cluster_attention::kernels
