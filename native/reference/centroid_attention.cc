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
Matrix normalize_over_inputs(Matrix logits, const Matrix& allowed, CentroidHead& head) {
  for (int64_t j = 0; j < logits.rows(); ++j) {
    for (int64_t i = 0; i < logits.columns(); ++i) logits(j, i) += std::log(allowed(j, i));
  }
  head.logsumexp = logsumexp_rows(logits);
  for (double value : head.logsumexp) head.objective += value == -kInfinity ? 0.0 : value;
  return softmax_rows(logits);
}

/// Rows of `matrix` that some centroid may take; the others become zeros, whatever they hold.
Matrix taken_rows(const Matrix& matrix, const Matrix& allowed) {
  Matrix rows(matrix.rows(), matrix.columns());
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    bool taken = false;
    for (int64_t j = 0; j < allowed.rows(); ++j) taken = taken || allowed(j, i) != 0.0;
    for (int64_t d = 0; taken && d < matrix.columns(); ++d) rows(i, d) = matrix(i, d);
  }
  return rows;
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
                        : normalize_over_inputs(logits, allowed, head);
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

CentroidHeadGradient centroid_head_gradient(const Matrix& query, const Matrix& key,
                                            const Matrix& value, double scale,
                                            const Matrix& allowed, Normalize normalize,
                                            Collect aggregate, const Matrix& output_gradient) {
  const CentroidHead head = centroid_head(query, key, value, scale, allowed, normalize, aggregate);
  const Matrix& a = head.assignment;
  const Matrix keys = taken_rows(key, allowed);
  const Matrix values = taken_rows(value, allowed);

  // The mean o_j = (sum_i a_ji v_i) / (r_j + 1e-6) depends on a_ji through r_j too.
  Matrix sum_gradient = output_gradient;
  Matrix mass_gradient(a.rows(), 1);
  for (int64_t j = 0; aggregate == Collect::mean && j < a.rows(); ++j) {
    for (int64_t e = 0; e < value.columns(); ++e) {
      sum_gradient(j, e) /= head.masses[j] + 1e-6;
      mass_gradient(j, 0) -= sum_gradient(j, e) * head.output(j, e);
    }
  }
  Matrix a_gradient = multiply_transposed(sum_gradient, values);
  Matrix logit_gradient(a.rows(), a.columns());
  CentroidHeadGradient gradient;
  gradient.weights.resize(static_cast<size_t>(a.columns()));
  for (int64_t j = 0; j < a.rows(); ++j) {
    double total = 0.0;  // of the softmax of centroid j
    for (int64_t i = 0; i < a.columns(); ++i) {
      a_gradient(j, i) += mass_gradient(j, 0);
      total += a(j, i) * a_gradient(j, i);
    }
    for (int64_t i = 0; normalize == Normalize::inputs && i < a.columns(); ++i) {
      if (allowed(j, i) == 0.0) continue;
      logit_gradient(j, i) = a(j, i) * (a_gradient(j, i) - total);
      gradient.weights[i] += logit_gradient(j, i) / allowed(j, i);
    }
  }
  for (int64_t i = 0; normalize == Normalize::centroids && i < a.columns(); ++i) {
    double& total = gradient.weights[i];  // of the softmax of input i
    for (int64_t j = 0; j < a.rows(); ++j) {
      if (allowed(j, i) != 0.0) total += a(j, i) / allowed(j, i) * a_gradient(j, i);
    }
    for (int64_t j = 0; j < a.rows(); ++j) {
      logit_gradient(j, i) = a(j, i) * (a_gradient(j, i) - total);
    }
  }
  for (int64_t j = 0; j < a.rows(); ++j) {
    for (int64_t i = 0; i < a.columns(); ++i) logit_gradient(j, i) *= scale;
  }
  gradient.query = multiply(logit_gradient, keys);
  gradient.key = multiply(transpose(logit_gradient), query);
  gradient.value = multiply(transpose(a), sum_gradient);
  return gradient;
}

namespace {

/// Which inputs each centroid of batch entry b may take, over its real rows.
Matrix allowed_in(const CentroidAttentionProblem& problem, int64_t b) {
  const AttentionInputs& inputs = problem.inputs;
  const int64_t listed = inputs.shape.query_length * problem.neighbor_count;
  return allowed_weights(
      problem.weights != nullptr ? problem.weights + b * inputs.shape.key_length : nullptr,
      problem.neighbors != nullptr ? problem.neighbors + b * listed : nullptr,
      problem.neighbor_count, real_length(inputs.query_lengths, b, inputs.shape.query_length),
      real_length(inputs.key_lengths, b, inputs.shape.key_length));
}

}  // namespace

CentroidAttentionResult centroid_attention(const CentroidAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t centroids = shape.query_length;
  const int64_t inputs = shape.key_length;
  const int64_t sequences = shape.batch * shape.heads;
  CentroidAttentionResult result{
      std::vector<double>(sequences * centroids * shape.value_dim),
      std::vector<int32_t>(sequences * inputs, -1), std::vector<double>(sequences * centroids),
      std::vector<double>(shape.batch), std::vector<double>(sequences * centroids, -kInfinity)};
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int64_t b = sequence / shape.heads;
    const Sequence rows = read_sequence(problem.inputs, b, sequence % shape.heads);
    const Matrix allowed = allowed_in(problem, b);
    const CentroidHead head = centroid_head(rows.query, rows.key, rows.value, problem.inputs.scale,
                                            allowed, problem.normalize, problem.aggregate);
    write_rows(head.output, sequence, centroids, result.output);
    std::copy(head.masses.begin(), head.masses.end(), result.masses.begin() + sequence * centroids);
    for (int64_t i = 0; i < rows.key.rows(); ++i) {
      result.labels[sequence * inputs + i] = hard_label(head.assignment, allowed, i);
    }
    std::copy(head.logsumexp.begin(), head.logsumexp.end(),
              result.logsumexp.begin() + sequence * centroids);
    result.objective[b] += head.objective;
  }
  return result;
}

CentroidAttentionGradientResult centroid_attention_gradient(
    const CentroidAttentionGradientProblem& problem) {
  const CentroidAttentionProblem& forward = problem.forward;
  const AttentionShape& shape = forward.inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  CentroidAttentionGradientResult result{
      std::vector<double>(sequences * shape.query_length * shape.head_dim),
      std::vector<double>(sequences * shape.key_length * shape.head_dim),
      std::vector<double>(sequences * shape.key_length * shape.value_dim),
      std::vector<double>(shape.batch * shape.key_length)};
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int64_t b = sequence / shape.heads;
    const int64_t h = sequence % shape.heads;
    const Sequence rows = read_sequence(forward.inputs, b, h);
    const CentroidHeadGradient gradient = centroid_head_gradient(
        rows.query, rows.key, rows.value, forward.inputs.scale, allowed_in(forward, b),
        forward.normalize, forward.aggregate,
        read_rows(problem.output_gradient, b, h, rows.query.rows(), shape.value_dim));
    write_rows(gradient.query, sequence, shape.query_length, result.query);
    write_rows(gradient.key, sequence, shape.key_length, result.key);
    write_rows(gradient.value, sequence, shape.key_length, result.value);
    for (int64_t i = 0; i < rows.key.rows(); ++i) {
      result.weights[b * shape.key_length + i] += gradient.weights[i];
    }
  }
  return result;
}

}  // namespace cluster_attention::reference
