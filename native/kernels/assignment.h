#pragma once

// The tile that centroid attention over centroids and centroid pooling share: a tile of inputs in
// lanes, scored against every centroid, each input's scores normalised down its lane, and
//
//     values_j += sum_i a_ji v_i        masses_j += sum_i a_ji w_i
//
// Method: scores = centroids x packed inputs, softmax down the lanes, then scores x value rows; the
// (M,N) matrix of assignments never exists, only (M,lanes) of it.
// Precision: fp32; a tile is summed in registers, tiles of a part into memory, parts at the end: a
// three-level sum, whose error grows with the square root of N / (parts x lanes).

#include <cstdint>

#include "native/core/workspace.h"

namespace cluster_attention::kernels {

/// Sums of one part of the inputs.
struct AssignmentSums {
  float* values = nullptr;  // (M, value columns): value dim rounded up to the SIMD width
  float* masses = nullptr;  // (M, SIMD width), the sum in column 0; null when not wanted
};

/// Where the sums of all parts of all sequences lie.
class AssignmentSumsArray {
 public:
  bool allocate(int64_t count, int64_t centroids, int64_t value_dim, bool with_masses,
                Workspace& workspace);
  AssignmentSums at(int64_t i) const {
    return {values_ + i * centroids_ * columns_,
            masses_ != nullptr ? masses_ + i * centroids_ * width_ : nullptr};
  }
  /// Sums over entries first..first+count-1, in order: row j to values (value dim), and its mass.
  void total_values(int64_t first, int64_t count, int64_t centroid, float* values) const;
  float total_mass(int64_t first, int64_t count, int64_t centroid) const;

 private:
  int64_t centroids_ = 0;
  int64_t value_dim_ = 0;
  int64_t columns_ = 0;
  int64_t width_ = 0;
  float* values_ = nullptr;
  float* masses_ = nullptr;
};

/// Scratch of one worker.
struct AssignmentTile {
  float* packed = nullptr;         // (dim, lanes), inputs in lanes
  float* scores = nullptr;         // (M, lanes)
  float* maximum = nullptr;        // (lanes), of the softmax, base 2
  float* sum = nullptr;            // (lanes)
  float* minimum = nullptr;        // (lanes), smallest dot product
  float* best = nullptr;           // (lanes)
  int32_t* best_row = nullptr;     // (lanes)
  float* values = nullptr;         // (lanes, value columns), where rows cannot be read in place
  float* value_weights = nullptr;  // (lanes, SIMD width), weights in column 0

  bool allocate(int64_t centroids, int64_t dim, int64_t value_dim, Workspace& workspace);

  /// best_row = argmax_j scores * scale + bias, lowest index of equal ones; best is -Inf where no
  /// score is above -Inf.
  void find_best(int64_t centroids, int64_t columns, float scale, const float* bias);
};

/// Value rows of a tile, in place or copied.
struct TileRows {
  const float* rows = nullptr;
  int64_t stride = 0;
};

/// The rows of inputs [first, first + columns), times their weights; rows that are contiguous,
/// unweighted and a multiple of the SIMD width are taken in place. Also fills tile.value_weights.
TileRows tile_rows(const float* rows, int64_t row_stride, const int32_t* index,
                   const float* weights, int64_t first, int64_t columns, int64_t dim,
                   const AssignmentTile& tile);

/// sums (+)= assignments in tile.scores times rows.
void add_tile(const AssignmentTile& tile, int64_t centroids, int64_t columns, const TileRows& rows,
              int64_t value_dim, bool accumulate, const AssignmentSums& sums);

/// sum (+)= rowsᵀ weights: sum_j rows[j][d] weights[j][i], weights (count,lanes), in blocks of
/// kRowsPerSum rows that are summed in registers.
constexpr int64_t kRowsPerSum = 128;
void add_weighted_rows(const float* rows, int64_t row_stride, int64_t count, int64_t dim,
                       const float* weights, int64_t columns, bool accumulate,
                       float* sum);  // (dim,lanes)

}  // namespace cluster_attention::kernels
