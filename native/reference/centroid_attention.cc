#include "native/reference/centroid_attention.h"

#include <algorithm>
#include <cmath>

#include "native/reference/attention.h"

namespace cluster_attention::reference {

namespace {

/// a_ji = w_i exp(z_ji) / sum_j' exp(z_j'i) over the centroids that may take input i.
Matrix normalize_over_centroids(const Matrix& logits, const Matrix& allowed, double& objective) {
  Matrix masked = transpose(logits);  // (N,M): the softmax of an input is a row
  for (int64_t i = 0; i < masked.rows(); ++i) {
    for (int64_t j = 0; j < masked.columns(); ++j) {
      if (allowed(j, i) == 0.0) masked(i, j) = -kInfinity;
    }
  }
  const std::vector<double> logsumexp = logsumexp_rows(masked);
  Matrix a = transpose(softmax_rows(masked));
  for (int64_t i = 0; i < a.columns(); ++i) {
    double weight = 0.0;
    for (int64_t j = 0; j < a.rows(); ++j) {
      weight = std::max(weight, allowed(j, i));
      a(j, i) *= allowed(j, i);
    }
    if (weight > 0.0) objective += weight * logsumexp[i];
  }
  return a;
}

/// a_ji = w_i exp(z_ji) / sum_i' w_i' exp(z_ji').
Matrix normalize_over_inputs(Matrix logits, const Matrix& allowed, double& objective) {
  for (int64_t j = 0; j < logits.rows(); ++j) {
    for (int64_t i = 0; i < logits.columns(); ++i) logits(j, i) += std::log(allowed(j, i));
  }
  for (double value : logsumexp_rows(logits)) objective += value == -kInfinity ? 0.0 : value;
  return softmax_rows(logits);
}

/// argmax_j a_ji over the centroids that may take input i; tie: the lowest; -1 for none.
int32_t hard_label(const Matrix& assignment, const Matrix& allowed, int64_t input) {
  int32_t best = -1;
  for (int64_t j = 0; j < assignment.rows(); ++j) {
    if (allowed(j, input) == 0.0) continue;
    if (best < 0 || assignment(j, input) > assignment(best, input)) best = static_cast<int32_t>(j);
  }
  return best;
}

}  // namespace

Matrix allowed_weights(const float* weights, const int32_t* neighbors, int64_t neighbor_count,
                       int64_t centroids, int64_t inputs) {
  Matrix listed(centroids, inputs, neighbors == nullptr ? 1.0 : 0.0);
  for (int64_t j = 0; neighbors != nullptr && j < centroids; ++j) {
    for (int64_t t = 0; t < neighbor_count; ++t) {
      const int32_t input = neighbors[j * neighbor_count + t];
      if (input >= 0 && input < inputs) listed(j, input) = 1.0;
    }
  }
  for (int64_t i = 0; weights != nullptr && i < inputs; ++i) {
    for (int64_t j = 0; j < centroids; ++j) listed(j, i) *= weights[i];
  }
  return listed;
}

CentroidHead centroid_head(const Matrix& query, const Matrix& key, const Matrix& value,
                           double scale, const Matrix& allowed, Normalize normalize,
                           Collect aggregate) {
  Matrix logits = multiply_transposed(query, key);
  for (int64_t j = 0; j < logits.rows(); ++j) {
    for (int64_t i = 0; i < logits.columns(); ++i) {
      logits(j, i) = allowed(j, i) == 0.0 ? 0.0 : scale * logits(j, i);
    }
  }
  CentroidHead head;
  head.assignment = normalize == Normalize::centroids
                        ? normalize_over_centroids(logits, allowed, head.objective)
                        : normalize_over_inputs(logits, allowed, head.objective);
  head.output = Matrix(logits.rows(), value.columns());
  for (int64_t j = 0; j < logits.rows(); ++j) {
    double mass = 0.0;
    for (int64_t i = 0; i < logits.columns(); ++i) {
      if (allowed(j, i) == 0.0) continue;  // a removed input may hold anything
      mass += head.assignment(j, i);
      for (int64_t e = 0; e < value.columns(); ++e) {
        head.output(j, e) += head.assignment(j, i) * value(i, e);
      }
    }
    head.masses.push_back(mass);
    for (int64_t e = 0; aggregate == Collect::mean && e < value.columns(); ++e) {
      head.output(j, e) /= mass + 1e-6;
    }
  }
  return head;
}

CentroidAttentionResult centroid_attention(const CentroidAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t centroids = shape.query_length;
  const int64_t inputs = shape.key_length;
  const int64_t sequences = shape.batch * shape.heads;
  CentroidAttentionResult result{std::vector<double>(sequences * centroids * shape.value_dim),
                                 std::vector<int32_t>(sequences * inputs, -1),
                                 std::vector<double>(sequences * centroids),
                                 std::vector<double>(shape.batch)};
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int64_t b = sequence / shape.heads;
    const Sequence rows = read_sequence(problem.inputs, b, sequence % shape.heads);
    const Matrix allowed = allowed_weights(
        problem.weights != nullptr ? problem.weights + b * inputs : nullptr,
        problem.neighbors != nullptr ? problem.neighbors + b * centroids * problem.neighbor_count
                                     : nullptr,
        problem.neighbor_count, rows.query.rows(), rows.key.rows());
    const CentroidHead head = centroid_head(rows.query, rows.key, rows.value, problem.inputs.scale,
                                            allowed, problem.normalize, problem.aggregate);
    write_rows(head.output, sequence, centroids, result.output);
    std::copy(head.masses.begin(), head.masses.end(), result.masses.begin() + sequence * centroids);
    for (int64_t i = 0; i < rows.key.rows(); ++i) {
      result.labels[sequence * inputs + i] = hard_label(head.assignment, allowed, i);
    }
    result.objective[b] += head.objective;
  }
  return result;
}

}  // namespace cluster_attention::reference
