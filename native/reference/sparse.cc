#include "native/reference/sparse.h"

#include "native/reference/matrix.h"

namespace cluster_attention::reference {

namespace {

/// The key in slot t of query l, -1 for none.
int64_t listed_key(const AttentionShape& shape, const SparseIndices& sparse,
                   const int32_t* key_lengths, int64_t sequence, int64_t l, int64_t t) {
  int64_t row = sequence * shape.query_length + l;
  if (sparse.labels != nullptr) {
    if (sparse.labels[row] < 0) return -1;
    row = sequence * sparse.clusters + sparse.labels[row];
  }
  const int32_t key = sparse.indices[row * sparse.k + t];
  const int64_t keys = real_length(key_lengths, sequence / shape.heads, shape.key_length);
  return key < keys ? key : -1;
}

/// Calls body(sequence, l, t, s) for every query l and every key s that it lists.
template <typename Problem, typename Body>
void for_each_pair(const Problem& problem, Body body) {
  const AttentionShape& shape = problem.shape;
  for (int64_t sequence = 0; sequence < shape.batch * shape.heads; ++sequence) {
    const int64_t queries =
        real_length(problem.query_lengths, sequence / shape.heads, shape.query_length);
    for (int64_t l = 0; l < queries; ++l) {
      for (int64_t t = 0; t < problem.sparse.k; ++t) {
        const int64_t s = listed_key(shape, problem.sparse, problem.key_lengths, sequence, l, t);
        if (s >= 0) body(sequence, l, t, s);
      }
    }
  }
}

}  // namespace

std::vector<double> sparse_dot(const SparseDotProblem& problem) {
  const AttentionShape& shape = problem.shape;
  const int64_t k = problem.sparse.k;
  std::vector<double> output(shape.batch * shape.heads * shape.query_length * k, -kInfinity);
  for_each_pair(problem, [&](int64_t sequence, int64_t l, int64_t t, int64_t s) {
    const float* query = problem.query.row(sequence / shape.heads, sequence % shape.heads, l);
    const float* key = problem.key.row(sequence / shape.heads, sequence % shape.heads, s);
    double sum = 0.0;
    for (int64_t d = 0; d < shape.head_dim; ++d) sum += double{query[d]} * double{key[d]};
    output[(sequence * shape.query_length + l) * k + t] = sum;
  });
  return output;
}

std::vector<double> sparse_weighted_sum(const SparseWeightedSumProblem& problem) {
  const AttentionShape& shape = problem.shape;
  std::vector<double> output(shape.batch * shape.heads * shape.query_length * shape.value_dim);
  for_each_pair(problem, [&](int64_t sequence, int64_t l, int64_t t, int64_t s) {
    const float* value = problem.value.row(sequence / shape.heads, sequence % shape.heads, s);
    const int64_t row = sequence * shape.query_length + l;
    const double weight = problem.weights[row * problem.sparse.k + t];
    for (int64_t e = 0; e < shape.value_dim; ++e) {
      output[row * shape.value_dim + e] += weight * double{value[e]};
    }
  });
  return output;
}

SparseDotGradients sparse_dot_gradient(const SparseDotGradientProblem& problem) {
  const SparseDotProblem& forward = problem.forward;
  const AttentionShape& shape = forward.shape;
  const int64_t sequences = shape.batch * shape.heads;
  SparseDotGradients gradients{std::vector<double>(sequences * shape.query_length * shape.head_dim),
                               std::vector<double>(sequences * shape.key_length * shape.head_dim)};
  for_each_pair(forward, [&](int64_t sequence, int64_t l, int64_t t, int64_t s) {
    const float* query = forward.query.row(sequence / shape.heads, sequence % shape.heads, l);
    const float* key = forward.key.row(sequence / shape.heads, sequence % shape.heads, s);
    const int64_t query_row = sequence * shape.query_length + l;
    const int64_t key_row = sequence * shape.key_length + s;
    const double gradient = problem.output_gradient[query_row * forward.sparse.k + t];
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      gradients.query[query_row * shape.head_dim + d] += gradient * double{key[d]};
      gradients.key[key_row * shape.head_dim + d] += gradient * double{query[d]};
    }
  });
  return gradients;
}

SparseWeightedSumGradients sparse_weighted_sum_gradient(
    const SparseWeightedSumGradientProblem& problem) {
  const SparseWeightedSumProblem& forward = problem.forward;
  const AttentionShape& shape = forward.shape;
  const int64_t sequences = shape.batch * shape.heads;
  SparseWeightedSumGradients gradients{
      std::vector<double>(sequences * shape.query_length * forward.sparse.k),
      std::vector<double>(sequences * shape.key_length * shape.value_dim)};
  for_each_pair(forward, [&](int64_t sequence, int64_t l, int64_t t, int64_t s) {
    const float* value = forward.value.row(sequence / shape.heads, sequence % shape.heads, s);
    const float* gradient =
        problem.output_gradient.row(sequence / shape.heads, sequence % shape.heads, l);
    const int64_t slot = (sequence * shape.query_length + l) * forward.sparse.k + t;
    const int64_t key_row = sequence * shape.key_length + s;
    for (int64_t e = 0; e < shape.value_dim; ++e) {
      gradients.weights[slot] += double{gradient[e]} * double{value[e]};
      gradients.value[key_row * shape.value_dim + e] +=
          double{forward.weights[slot]} * double{gradient[e]};
    }
  });
  return gradients;
}

}  // namespace cluster_attention::reference
