#include "native/reference/centroid_encode.h"

#include <algorithm>

#include "native/reference/centroid_attention.h"
#include "native/reference/centroid_pool.h"
#include "native/reference/starting_rows.h"

namespace cluster_attention::reference {

namespace {

/// Columns of head l.
Matrix head_columns(const Matrix& matrix, int64_t head, int64_t head_dim) {
  Matrix part(matrix.rows(), head_dim);
  for (int64_t i = 0; i < part.rows(); ++i) {
    for (int64_t d = 0; d < head_dim; ++d) part(i, d) = matrix(i, head * head_dim + d);
  }
  return part;
}

/// An optional array from `offset` on.
template <typename T>
const T* part(const T* data, int64_t offset) {
  return data == nullptr ? nullptr : data + offset;
}

/// u⁰: a given one, or one made of the inputs whose weight is not 0, which has no more centroids
/// than these.
Matrix start(const CentroidEncodeProblem& problem, const Matrix& x, int64_t batch) {
  if (problem.start == PoolStart::given) {
    return read_dense(problem.initial + batch * problem.centroids * problem.dim, problem.centroids,
                      problem.dim);
  }
  const float* weights = part(problem.weights, batch * problem.length);
  std::vector<int64_t> active;
  for (int64_t i = 0; i < problem.length; ++i) {
    if (weights == nullptr || weights[i] != 0.0f) active.push_back(i);
  }
  const int64_t centroids = std::min<int64_t>(problem.centroids, active.size());
  return starting_centroids(take_rows(x, active), centroids, problem.start, false, problem.seed,
                            nullptr);
}

}  // namespace

std::vector<double> centroid_encode(const CentroidEncodeProblem& problem) {
  const int64_t width = problem.heads * problem.head_dim;
  const int64_t dim = problem.dim;
  const Matrix query_weight = read_dense(problem.query_weight, width, dim);
  const Matrix key_weight = read_dense(problem.key_weight, width, dim);
  const Matrix value_weight = read_dense(problem.value_weight, width, dim);
  const Matrix output_weight = read_dense(problem.output_weight, dim, width);

  std::vector<double> output(problem.batch * problem.centroids * dim);
  for (int64_t b = 0; b < problem.batch; ++b) {
    const Matrix x = read_dense(problem.inputs + b * problem.length * dim, problem.length, dim);
    const Matrix key = multiply_transposed(x, key_weight);
    const Matrix value = multiply_transposed(x, value_weight);
    Matrix u = start(problem, x, b);
    const Matrix allowed =
        allowed_weights(part(problem.weights, b * problem.length),
                        part(problem.neighbors, b * problem.centroids * problem.neighbor_count),
                        problem.neighbor_count, u.rows(), problem.length);

    for (int64_t step = 0; step < problem.steps; ++step) {
      const Matrix query = multiply_transposed(u, query_weight);
      Matrix concatenated(u.rows(), width);
      for (int64_t l = 0; l < problem.heads; ++l) {
        const CentroidHead head = centroid_head(
            head_columns(query, l, problem.head_dim), head_columns(key, l, problem.head_dim),
            head_columns(value, l, problem.head_dim), problem.scale, allowed, problem.normalize,
            problem.aggregate);
        for (int64_t j = 0; j < u.rows(); ++j) {
          for (int64_t d = 0; d < problem.head_dim; ++d) {
            concatenated(j, l * problem.head_dim + d) = head.output(j, d);
          }
        }
      }
      const Matrix change = multiply_transposed(concatenated, output_weight);
      for (int64_t j = 0; j < u.rows(); ++j) {
        for (int64_t d = 0; d < dim; ++d) u(j, d) += problem.step_size * change(j, d);
      }
    }
    write_rows(u, b, problem.centroids, output);
  }
  return output;
}

}  // namespace cluster_attention::reference
