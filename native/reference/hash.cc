#include "native/reference/hash.h"

#include <algorithm>

#include "native/core/random.h"

namespace cluster_attention::reference {

namespace {

double projection(const Matrix& inputs, int64_t row, const Matrix& planes, int64_t bit) {
  double sum = 0.0;
  for (int64_t d = 0; d < inputs.columns(); ++d) sum += inputs(row, d) * planes(bit, d);
  return sum;
}

}  // namespace

std::vector<uint64_t> hash(const Matrix& inputs, const Matrix& planes) {
  std::vector<uint64_t> hashes(inputs.rows(), 0);
  for (int64_t row = 0; row < inputs.rows(); ++row) {
    for (int64_t bit = 0; bit < planes.rows(); ++bit) {
      if (projection(inputs, row, planes, bit) > planes(bit, inputs.columns())) {
        hashes[row] |= uint64_t{1} << bit;
      }
    }
  }
  return hashes;
}

std::vector<uint64_t> hash(const HashProblem& problem) {
  return hash(read_dense(problem.inputs, problem.rows, problem.dim),
              read_dense(problem.planes, problem.bits, problem.dim + 1));
}

Matrix with_data_thresholds(const Matrix& inputs, const Matrix& planes, uint64_t seed) {
  Matrix result = planes;
  const int64_t rows = inputs.rows();
  if (rows == 0) return result;
  for (int64_t bit = 0; bit < planes.rows(); ++bit) {
    std::vector<double> projections(rows);
    for (int64_t row = 0; row < rows; ++row) {
      projections[row] = projection(inputs, row, planes, bit);
    }
    std::sort(projections.begin(), projections.end());
    const double u = random_uniform(seed, RandomStream::hash_thresholds, bit);
    result(bit, inputs.columns()) = projections[static_cast<int64_t>(u * rows)];
  }
  return result;
}

}  // namespace cluster_attention::reference
