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

void add_scaled(Matrix& sum, double factor, const Matrix& term) {
  for (int64_t i = 0; i < sum.rows(); ++i) {
    for (int64_t j = 0; j < sum.columns(); ++j) sum(i, j) += factor * term(i, j);
  }
}

Matrix scaled(Matrix matrix, double factor) {
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.columns(); ++j) matrix(i, j) *= factor;
  }
  return matrix;
}

namespace {

/// exp(logit - maximum) of each row, 0 for a row without a finite logit; maxima and sums beside it.
struct Exponentials {
  Matrix terms;
  std::vector<double> maximum;
  std::vector<double> sum;
};

Exponentials exponentiate_rows(const Matrix& logits) {
  const size_t rows = static_cast<size_t>(logits.rows());
  Exponentials result{Matrix(logits.rows(), logits.columns()),
                      std::vector<double>(rows, -kInfinity), std::vector<double>(rows, 0.0)};
  for (int64_t i = 0; i < logits.rows(); ++i) {
    double& maximum = result.maximum[i];
    for (int64_t j = 0; j < logits.columns(); ++j) maximum = std::max(maximum, logits(i, j));
    if (maximum == -kInfinity) continue;
    for (int64_t j = 0; j < logits.columns(); ++j) {
      result.terms(i, j) = std::exp(logits(i, j) - maximum);
      result.sum[i] += result.terms(i, j);
    }
  }
  return result;
}

}  // namespace

std::vector<double> logsumexp_rows(const Matrix& logits) {
  const Exponentials exponentials = exponentiate_rows(logits);
  std::vector<double> result = exponentials.maximum;
  for (size_t i = 0; i < result.size(); ++i) {
    if (exponentials.sum[i] > 0.0) result[i] += std::log(exponentials.sum[i]);
  }
  return result;
}

Matrix softmax_rows(const Matrix& logits) {
  Exponentials exponentials = exponentiate_rows(logits);
  for (int64_t i = 0; i < logits.rows(); ++i) {
    if (exponentials.sum[i] == 0.0) continue;
    for (int64_t j = 0; j < logits.columns(); ++j) {
      exponentials.terms(i, j) /= exponentials.sum[i];
    }
  }
  return exponentials.terms;
}

std::vector<int32_t> sorted_indices(const std::vector<double>& scores) {
  std::vector<int32_t> indices(scores.size());
  std::iota(indices.begin(), indices.end(), 0);
  std::stable_sort(indices.begin(), indices.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  return indices;
}

}  // namespace cluster_attention::reference
