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

void put_columns(const Matrix& part, int64_t head, Matrix& matrix) {
  for (int64_t i = 0; i < part.rows(); ++i) {
    for (int64_t d = 0; d < part.columns(); ++d) matrix(i, head * part.columns() + d) = part(i, d);
  }
}

/// One sequence of a problem.
class Encoding {
 public:
  Encoding(const CentroidEncodeProblem& problem, int64_t batch)
      : query_weight(
            read_dense(problem.query_weight, problem.heads * problem.head_dim, problem.dim)),
        key_weight(read_dense(problem.key_weight, problem.heads * problem.head_dim, problem.dim)),
        value_weight(
            read_dense(problem.value_weight, problem.heads * problem.head_dim, problem.dim)),
        output_weight(
            read_dense(problem.output_weight, problem.dim, problem.heads * problem.head_dim)),
        x(read_dense(problem.inputs + batch * problem.length * problem.dim, problem.length,
                     problem.dim)),
        problem_(problem) {
    const float* weights = part(problem.weights, batch * problem.length);
    for (int64_t i = 0; i < problem.length; ++i) {
      if (weights == nullptr || weights[i] != 0.0f) {
        active.push_back(i);
      } else {
        for (int64_t d = 0; d < problem.dim; ++d) x(i, d) = 0.0;  // it may hold anything
      }
    }
    key_ = multiply_transposed(x, key_weight);
    value_ = multiply_transposed(x, value_weight);
    // A start has no more centroids than inputs whose weight is not 0.
    const bool given = problem.start == PoolStart::given;
    const int64_t centroids =
        given ? problem.centroids : std::min<int64_t>(problem.centroids, active.size());
    start = starting_centroids(take_rows(x, active), centroids, problem.start, false, problem.seed,
                               part(problem.initial, batch * problem.centroids * problem.dim));
    allowed_ = allowed_weights(
        weights, part(problem.neighbors, batch * problem.centroids * problem.neighbor_count),
        problem.neighbor_count, centroids, problem.length);
  }

  Matrix query_weight;
  Matrix key_weight;
  Matrix value_weight;
  Matrix output_weight;
  Matrix x;                     // removed inputs are rows of zeros
  std::vector<int64_t> active;  // the others
  Matrix start;                 // u⁰

  /// concat_l(aggregate_i a_lji (W_v x_i)_l) for centroids u.
  Matrix collect(const Matrix& u) const {
    const Matrix query = multiply_transposed(u, query_weight);
    Matrix collected(u.rows(), query.columns());
    for (int64_t l = 0; l < problem_.heads; ++l) {
      put_columns(centroid_head(columns(query, l), columns(key_, l), columns(value_, l),
                                problem_.scale, allowed_, problem_.normalize, problem_.aggregate)
                      .output,
                  l, collected);
    }
    return collected;
  }

  Matrix step(Matrix u) const {
    add_scaled(u, problem_.step_size, multiply_transposed(collect(u), output_weight));
    return u;
  }

  /// Gradients by W_q u, W_k x and W_v x, given the one by collect(u).
  struct ProjectionGradients {
    Matrix query;
    Matrix key;
    Matrix value;
  };
  ProjectionGradients collect_gradient(const Matrix& u, const Matrix& gradient) const {
    const Matrix query = multiply_transposed(u, query_weight);
    ProjectionGradients result{Matrix(u.rows(), query.columns()), Matrix(x.rows(), query.columns()),
                               Matrix(x.rows(), query.columns())};
    for (int64_t l = 0; l < problem_.heads; ++l) {
      const CentroidHeadGradient head = centroid_head_gradient(
          columns(query, l), columns(key_, l), columns(value_, l), problem_.scale, allowed_,
          problem_.normalize, problem_.aggregate, columns(gradient, l));
      put_columns(head.query, l, result.query);
      put_columns(head.key, l, result.key);
      put_columns(head.value, l, result.value);
    }
    return result;
  }

 private:
  Matrix columns(const Matrix& matrix, int64_t head) const {
    return head_columns(matrix, head, problem_.head_dim);
  }

  const CentroidEncodeProblem& problem_;
  Matrix key_;
  Matrix value_;
  Matrix allowed_;
};

}  // namespace

std::vector<double> centroid_encode(const CentroidEncodeProblem& problem) {
  std::vector<double> output(problem.batch * problem.centroids * problem.dim);
  for (int64_t b = 0; b < problem.batch; ++b) {
    const Encoding encoding(problem, b);
    Matrix u = encoding.start;
    for (int64_t step = 0; step < problem.steps; ++step) u = encoding.step(u);
    write_rows(u, b, problem.centroids, output);
  }
  return output;
}

CentroidEncodeGradientResult centroid_encode_gradient(
    const CentroidEncodeGradientProblem& problem) {
  const CentroidEncodeProblem& forward = problem.forward;
  const int64_t width = forward.heads * forward.head_dim;
  const int64_t dim = forward.dim;
  Matrix query_weight(width, dim);
  Matrix key_weight(width, dim);
  Matrix value_weight(width, dim);
  Matrix output_weight(dim, width);
  CentroidEncodeGradientResult result;
  result.inputs.resize(forward.batch * forward.length * dim);
  result.initial.resize(forward.batch * forward.centroids * dim);
  for (int64_t b = 0; b < forward.batch; ++b) {
    const Encoding encoding(forward, b);
    std::vector<Matrix> states{encoding.start};
    for (int64_t step = 1; step < forward.steps; ++step) {
      states.push_back(encoding.step(states.back()));
    }
    Matrix gradient = read_dense(problem.output_gradient + b * forward.centroids * dim,
                                 encoding.start.rows(), dim);
    Matrix inputs(forward.length, dim);
    for (int64_t step = forward.steps - 1; step >= 0; --step) {
      const Matrix& u = states[step];
      const double step_size = forward.step_size;
      add_scaled(output_weight, step_size, multiply(transpose(gradient), encoding.collect(u)));
      Matrix collected(u.rows(), width);
      add_scaled(collected, step_size, multiply(gradient, encoding.output_weight));
      const auto change = encoding.collect_gradient(u, collected);
      add_scaled(query_weight, 1.0, multiply(transpose(change.query), u));
      add_scaled(key_weight, 1.0, multiply(transpose(change.key), encoding.x));
      add_scaled(value_weight, 1.0, multiply(transpose(change.value), encoding.x));
      add_scaled(inputs, 1.0, multiply(change.key, encoding.key_weight));
      add_scaled(inputs, 1.0, multiply(change.value, encoding.value_weight));
      add_scaled(gradient, 1.0, multiply(change.query, encoding.query_weight));
    }
    const Matrix start = starting_gradient(take_rows(encoding.x, encoding.active), forward.start,
                                           false, forward.seed, gradient);
    for (int64_t i = 0; i < start.rows(); ++i) {
      for (int64_t d = 0; d < dim; ++d) inputs(encoding.active[i], d) += start(i, d);
    }
    write_rows(inputs, b, forward.length, result.inputs);
    write_rows(gradient, b, forward.centroids, result.initial);
  }
  result.query_weight = query_weight.data();
  result.key_weight = key_weight.data();
  result.value_weight = value_weight.data();
  result.output_weight = output_weight.data();
  return result;
}

}  // namespace cluster_attention::reference
