#pragma once

// The reference works on whole matrices in double precision: one line of a paper is one line here.
// A matrix holds real rows only, so padding is never even copied.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "native/core/tensor.h"

namespace cluster_attention::reference {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t columns, double fill = 0.0)
      : rows_(rows), columns_(columns), data_(static_cast<size_t>(rows * columns), fill) {}

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  double& operator()(int64_t row, int64_t column) { return data_[index(row, column)]; }
  double operator()(int64_t row, int64_t column) const { return data_[index(row, column)]; }
  const std::vector<double>& data() const { return data_; }

 private:
  size_t index(int64_t row, int64_t column) const {
    return static_cast<size_t>(row * columns_ + column);
  }

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<double> data_;
};

/// The leading `rows` rows of one sequence.
Matrix read_rows(const InputRows& view, int64_t batch, int64_t head, int64_t rows, int64_t columns);
/// A dense (rows,columns) array.
Matrix read_dense(const float* data, int64_t rows, int64_t columns);
/// Puts a matrix into the leading rows of sequence `sequence` of a dense (sequences,rows,columns).
void write_rows(const Matrix& matrix, int64_t sequence, int64_t rows, std::vector<double>& dense);

Matrix multiply(const Matrix& a, const Matrix& b);             // a b
Matrix multiply_transposed(const Matrix& a, const Matrix& b);  // a bᵀ
Matrix transpose(const Matrix& a);
/// sum += factor * term.
void add_scaled(Matrix& sum, double factor, const Matrix& term);
Matrix scaled(Matrix matrix, double factor);

/// log sum exp of each row; -Inf for a row of -Inf.
std::vector<double> logsumexp_rows(const Matrix& logits);
/// Softmax of each row; -Inf is a masked entry, a row of nothing else becomes zeros.
Matrix softmax_rows(const Matrix& logits);

/// Row indices of `scores`, best first: larger score first, equal scores lower index first.
std::vector<int32_t> sorted_indices(const std::vector<double>& scores);

}  // namespace cluster_attention::reference
