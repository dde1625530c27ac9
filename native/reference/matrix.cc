#include "native/reference/matrix.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cluster_attention::reference {

Matrix read_rows(const InputRows& view, int64_t batch, int64_t head, int64_t rows,
                 int64_t columns) {
  Matrix matrix(rows, columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) matrix(r, c) = view.row(batch, head, r)[c];
  }
  return matrix;
}

Matrix read_dense(const float* data, int64_t rows, int64_t columns) {
  return read_rows(dense_rows(data, rows, columns), 0, 0, rows, columns);
}

void write_rows(const Matrix& matrix, int64_t sequence, int64_t rows, std::vector<double>& dense) {
  std::copy(matrix.data().begin(), matrix.data().end(),
            dense.begin() + sequence * rows * matrix.columns());
}

Matrix multiply(const Matrix& a, const Matrix& b) {
  Matrix product(a.rows(), b.columns());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.columns(); ++j) {
      const double factor = a(i, j);
      for (int64_t c = 0; c < b.columns(); ++c) product(i, c) += factor * b(j, c);
    }
  }
  return product;
}

Matrix multiply_transposed(const Matrix& a, const Matrix& b) {
  Matrix product(a.rows(), b.rows());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < b.rows(); ++j) {
      double sum = 0.0;
      for (int64_t c = 0; c < a.columns(); ++c) sum += a(i, c) * b(j, c);
      product(i, j) = sum;
    }
  }
  return product;
}

Matrix transpose(const Matrix& a) {
  Matrix transposed(a.columns(), a.rows());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.columns(); ++j) transposed(j, i) = a(i, j);
  }
  return transposed;
}

std::vector<double> logsumexp_rows(const Matrix& logits) {
  std::vector<double> result(static_cast<size_t>(logits.rows()), -kInfinity);
  for (int64_t i = 0; i < logits.rows(); ++i) {
    double maximum = -kInfinity;
    for (int64_t j = 0; j < logits.columns(); ++j) maximum = std::max(maximum, logits(i, j));
    if (maximum == -kInfinity) continue;
    double sum = 0.0;
    for (int64_t j = 0; j < logits.columns(); ++j) sum += std::exp(logits(i, j) - maximum);
    result[i] = maximum + std::log(sum);
  }
  return result;
}

Matrix softmax_rows(const Matrix& logits) {
  const std::vector<double> logsumexp = logsumexp_rows(logits);
  Matrix weights(logits.rows(), logits.columns());
  for (int64_t i = 0; i < logits.rows(); ++i) {
    if (logsumexp[i] == -kInfinity) continue;
    for (int64_t j = 0; j < logits.columns(); ++j) {
      weights(i, j) = std::exp(logits(i, j) - logsumexp[i]);
    }
  }
  return weights;
}

std::vector<int32_t> sorted_indices(const std::vector<double>& scores) {
  std::vector<int32_t> indices(scores.size());
  std::iota(indices.begin(), indices.end(), 0);
  std::stable_sort(indices.begin(), indices.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  return indices;
}

}  // namespace cluster_attention::reference
