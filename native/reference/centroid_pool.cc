#include "native/reference/centroid_pool.h"

#include <algorithm>
#include <cmath>

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

/// NaN is passed over; 0 where there is nothing else.
int32_t best_column(const Matrix& matrix, int64_t row) {
  int32_t best = 0;
  for (int64_t j = 1; j < matrix.columns(); ++j) {
    if (matrix(row, j) > matrix(row, best) || std::isnan(matrix(row, best))) {
      best = static_cast<int32_t>(j);
    }
  }
  return std::isnan(matrix(row, best)) ? 0 : best;
}

/// One step of the centroids; their masses.
Matrix pool_step(const Matrix& u, const Matrix& a, const Matrix& x, std::vector<double>& masses) {
  Matrix moved = u;
  masses.assign(static_cast<size_t>(u.rows()), 0.0);
  for (int64_t j = 0; j < u.rows(); ++j) {
    for (int64_t i = 0; i < x.rows(); ++i) masses[j] += a(j, i);
    if (masses[j] == 0.0) continue;  // a centroid without mass keeps its value
    for (int64_t d = 0; d < x.columns(); ++d) {
      double sum = 0.0;
      for (int64_t i = 0; i < x.rows(); ++i) {
        if (a(j, i) != 0.0) sum += a(j, i) * x(i, d);  // what has no weight may be NaN
      }
      moved(j, d) = sum / masses[j];
    }
  }
  return moved;
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
      std::vector<double> masses;
      u = pool_step(u, a, x, masses);
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

namespace {

/// What the gradient by the unit rows means for the rows; nothing for a row of zeros.
Matrix normalize_gradient(const Matrix& rows, const Matrix& by_unit) {
  Matrix result(rows.rows(), rows.columns());
  for (int64_t i = 0; i < rows.rows(); ++i) {
    double squared = 0.0;
    double along = 0.0;
    for (int64_t d = 0; d < rows.columns(); ++d) {
      squared += rows(i, d) * rows(i, d);
      along += rows(i, d) * by_unit(i, d);
    }
    if (squared == 0.0) continue;
    for (int64_t d = 0; d < rows.columns(); ++d) {
      result(i, d) = (by_unit(i, d) - along / squared * rows(i, d)) / std::sqrt(squared);
    }
  }
  return result;
}

/// Gradients by centroids u and inputs x, given those by similarity(u_j, x_i), (M,N).
struct SimilarityGradient {
  Matrix centroids;
  Matrix inputs;
};

SimilarityGradient similarity_gradient(const Matrix& u, const Matrix& x, Similarity similarity,
                                       const Matrix& gradient) {
  if (similarity == Similarity::cosine) {
    return {normalize_gradient(u, multiply(gradient, normalize_rows(x))),
            normalize_gradient(x, multiply(transpose(gradient), normalize_rows(u)))};
  }
  SimilarityGradient result{multiply(gradient, x), multiply(transpose(gradient), u)};
  if (similarity == Similarity::dot) return result;
  for (int64_t j = 0; j < u.rows(); ++j) {
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t d = 0; d < x.columns(); ++d) {
        result.centroids(j, d) -= gradient(j, i) * u(j, d);
        result.inputs(i, d) -= gradient(j, i) * x(i, d);
      }
    }
  }
  return result;
}

/// From the gradient by the centroids after a step to that by the centroids u before it; what the
/// inputs get is added to theirs.
Matrix pool_step_gradient(const CentroidPoolProblem& problem, const Matrix& u, const Matrix& x,
                          const Matrix& gradient, Matrix& inputs) {
  const Matrix a = pool_assignment(u, x, problem.similarity, problem.temperature);
  std::vector<double> masses;
  const Matrix moved = pool_step(u, a, x, masses);
  Matrix sum_gradient(u.rows(), u.columns());
  Matrix kept(u.rows(), u.columns());
  for (int64_t j = 0; j < u.rows(); ++j) {
    for (int64_t d = 0; d < u.columns(); ++d) {
      if (masses[j] == 0.0) kept(j, d) = gradient(j, d);
      if (masses[j] != 0.0) sum_gradient(j, d) = gradient(j, d) / masses[j];
    }
  }
  add_scaled(inputs, 1.0, multiply(transpose(a), sum_gradient));
  if (problem.temperature == 0.0f) return kept;  // labels are constants

  Matrix logits = multiply_transposed(sum_gradient, x);
  for (int64_t i = 0; i < x.rows(); ++i) {
    double total = 0.0;
    for (int64_t j = 0; j < u.rows(); ++j) {
      for (int64_t d = 0; d < u.columns(); ++d) logits(j, i) -= sum_gradient(j, d) * moved(j, d);
      total += a(j, i) * logits(j, i);
    }
    for (int64_t j = 0; j < u.rows(); ++j) {
      logits(j, i) = a(j, i) * (logits(j, i) - total) / static_cast<double>(problem.temperature);
    }
  }
  const SimilarityGradient change = similarity_gradient(u, x, problem.similarity, logits);
  add_scaled(inputs, 1.0, change.inputs);
  add_scaled(kept, 1.0, change.centroids);
  return kept;
}

}  // namespace

CentroidPoolGradientResult centroid_pool_gradient(const CentroidPoolGradientProblem& problem) {
  const CentroidPoolProblem& forward = problem.forward;
  CentroidPoolGradientResult result;
  result.inputs.resize(forward.batch * forward.length * forward.dim);
  result.initial.resize(forward.batch * forward.centroids * forward.dim);
  const bool cosine = forward.similarity == Similarity::cosine;
  for (int64_t b = 0; b < forward.batch; ++b) {
    const int64_t length = real_length(forward.lengths, b, forward.length);
    const int64_t centroids = std::min(forward.centroids, length);
    const int64_t first = b * forward.centroids * forward.dim;
    const Matrix x =
        read_dense(forward.inputs + b * forward.length * forward.dim, length, forward.dim);
    const float* given = forward.initial != nullptr ? forward.initial + first : nullptr;
    std::vector<Matrix> states{
        starting_centroids(x, centroids, forward.start, cosine, forward.seed, given)};
    std::vector<double> masses;
    for (int64_t step = 1; step < forward.iterations; ++step) {
      const Matrix& u = states.back();
      const Matrix a = pool_assignment(u, x, forward.similarity, forward.temperature);
      states.push_back(pool_step(u, a, x, masses));
    }
    Matrix gradient = read_dense(problem.output_gradient + first, centroids, forward.dim);
    Matrix inputs(length, forward.dim);
    for (int64_t step = forward.iterations - 1; step >= 0; --step) {
      gradient = pool_step_gradient(forward, states[step], x, gradient, inputs);
    }
    add_scaled(inputs, 1.0, starting_gradient(x, forward.start, cosine, forward.seed, gradient));
    write_rows(inputs, b, forward.length, result.inputs);
    write_rows(gradient, b, forward.centroids, result.initial);
  }
  return result;
}

}  // namespace cluster_attention::reference
