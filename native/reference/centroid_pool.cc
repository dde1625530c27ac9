#include "native/reference/centroid_pool.h"

#include <algorithm>

#include "native/reference/kmeans.h"
#include "native/reference/starting_rows.h"

namespace cluster_attention::reference {

namespace {

/// Row j averages the inputs [floor(j N / M), floor((j + 1) N / M)).
Matrix strided_means(const Matrix& inputs, int64_t centroids) {
  Matrix means(centroids, inputs.columns());
  for (int64_t j = 0; j < centroids; ++j) {
    const int64_t begin = j * inputs.rows() / centroids;
    const int64_t end = (j + 1) * inputs.rows() / centroids;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t d = 0; d < inputs.columns(); ++d) {
        means(j, d) += inputs(i, d) / static_cast<double>(end - begin);
      }
    }
  }
  return means;
}

/// similarity(u_j, x_i), (N,M).
Matrix similarities(const Matrix& inputs, const Matrix& centroids, Similarity similarity) {
  if (similarity == Similarity::cosine) {
    return multiply_transposed(normalize_rows(inputs), normalize_rows(centroids));
  }
  Matrix result = multiply_transposed(inputs, centroids);
  if (similarity == Similarity::dot) return result;
  for (int64_t i = 0; i < inputs.rows(); ++i) {
    for (int64_t j = 0; j < centroids.rows(); ++j) {
      double squared = 0.0;
      for (int64_t d = 0; d < inputs.columns(); ++d) {
        squared += (inputs(i, d) - centroids(j, d)) * (inputs(i, d) - centroids(j, d));
      }
      result(i, j) = -0.5 * squared;
    }
  }
  return result;
}

int32_t best_column(const Matrix& matrix, int64_t row) {
  int32_t best = 0;
  for (int64_t j = 1; j < matrix.columns(); ++j) {
    if (matrix(row, j) > matrix(row, best)) best = static_cast<int32_t>(j);
  }
  return best;
}

/// The rows that a start picks.
std::vector<int64_t> picked_rows(const Matrix& inputs, int64_t centroids, PoolStart start,
                                 bool cosine, uint64_t seed) {
  const Matrix points = cosine ? normalize_rows(inputs) : inputs;
  if (start == PoolStart::plus_plus) return plus_plus_rows(points, centroids, seed);
  if (start == PoolStart::farthest) return farthest_rows(points, centroids);
  return sample_rows(inputs.rows(), centroids, seed);
}

}  // namespace

Matrix starting_centroids(const Matrix& inputs, int64_t centroids, PoolStart start, bool cosine,
                          uint64_t seed, const float* given) {
  if (start == PoolStart::given) return read_dense(given, centroids, inputs.columns());
  if (start == PoolStart::stride) return strided_means(inputs, centroids);
  return take_rows(inputs, picked_rows(inputs, centroids, start, cosine, seed));
}

Matrix starting_gradient(const Matrix& inputs, PoolStart start, bool cosine, uint64_t seed,
                         const Matrix& gradient) {
  Matrix result(inputs.rows(), inputs.columns());
  const int64_t centroids = gradient.rows();
  if (start == PoolStart::given) return result;
  const std::vector<int64_t> picked = start == PoolStart::stride
                                          ? std::vector<int64_t>()
                                          : picked_rows(inputs, centroids, start, cosine, seed);
  for (int64_t j = 0; j < centroids; ++j) {
    const int64_t begin = picked.empty() ? j * inputs.rows() / centroids : picked[j];
    const int64_t end = picked.empty() ? (j + 1) * inputs.rows() / centroids : begin + 1;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t d = 0; d < inputs.columns(); ++d) {
        result(i, d) += gradient(j, d) / static_cast<double>(end - begin);
      }
    }
  }
  return result;
}

Matrix pool_assignment(const Matrix& centroids, const Matrix& inputs, Similarity similarity,
                       double temperature) {
  Matrix logits = similarities(inputs, centroids, similarity);
  if (temperature == 0.0) {
    Matrix hard(centroids.rows(), inputs.rows());
    for (int64_t i = 0; i < inputs.rows() && centroids.rows() > 0; ++i) {
      hard(best_column(logits, i), i) = 1.0;
    }
    return hard;
  }
  for (int64_t i = 0; i < logits.rows(); ++i) {
    for (int64_t j = 0; j < logits.columns(); ++j) logits(i, j) /= temperature;
  }
  return transpose(softmax_rows(logits));
}

CentroidPoolResult centroid_pool(const CentroidPoolProblem& problem) {
  CentroidPoolResult result{std::vector<double>(problem.batch * problem.centroids * problem.dim),
                            std::vector<int32_t>(problem.batch * problem.length, -1),
                            std::vector<double>(problem.batch * problem.centroids)};
  const InputRows view = dense_rows(problem.inputs, problem.length, problem.dim);
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t length = real_length(problem.lengths, b, problem.length);
    const int64_t centroids = std::min(problem.centroids, length);
    const Matrix x = read_rows(view, b, 0, length, problem.dim);
    const float* given = problem.initial != nullptr
                             ? problem.initial + b * problem.centroids * problem.dim
                             : nullptr;
    Matrix u = starting_centroids(x, centroids, problem.start,
                                  problem.similarity == Similarity::cosine, problem.seed, given);
    for (int64_t step = 0; step < problem.iterations; ++step) {
      const Matrix a = pool_assignment(u, x, problem.similarity, problem.temperature);
      const Matrix sums = multiply(a, x);
      for (int64_t j = 0; j < centroids; ++j) {
        double mass = 0.0;
        for (int64_t i = 0; i < length; ++i) mass += a(j, i);
        if (mass == 0.0) continue;  // a centroid without mass keeps its value
        for (int64_t d = 0; d < problem.dim; ++d) u(j, d) = sums(j, d) / mass;
      }
    }
    write_rows(u, b, problem.centroids, result.output);
    const Matrix a = transpose(pool_assignment(u, x, problem.similarity, problem.temperature));
    for (int64_t i = 0; i < length; ++i) {
      result.labels[b * problem.length + i] = best_column(a, i);
      for (int64_t j = 0; j < centroids; ++j) {
        result.masses[b * problem.centroids + j] += a(i, j);
      }
    }
  }
  return result;
}

}  // namespace cluster_attention::reference
