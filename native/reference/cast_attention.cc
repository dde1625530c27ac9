#include "native/reference/cast_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "native/reference/attention.h"
#include "native/reference/starting_rows.h"

namespace cluster_attention::reference {

namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
/// softplus₁(x) = log(1 + eˣ) + 1.
double softplus1(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))) + 1.0; }

/// f along each row: softmax, or the Laplace function of each element.
Matrix activate(const Matrix& logits, Activation activation) {
  if (activation == Activation::softmax) return softmax_rows(logits);
  Matrix result(logits.rows(), logits.columns());
  for (int64_t i = 0; i < logits.rows(); ++i) {
    for (int64_t j = 0; j < logits.columns(); ++j) {
      result(i, j) =
          0.5 * (1.0 + std::erf((logits(i, j) - 0.707107) / (0.282095 * std::sqrt(2.0))));
    }
  }
  return result;
}

/// Gradients by the logits of activate(), given those by its result.
Matrix activate_gradient(const Matrix& logits, Activation activation, const Matrix& gradient) {
  const Matrix f = activate(logits, activation);
  Matrix result(logits.rows(), logits.columns());
  for (int64_t i = 0; i < logits.rows(); ++i) {
    double total = 0.0;
    for (int64_t j = 0; j < logits.columns(); ++j) total += f(i, j) * gradient(i, j);
    for (int64_t j = 0; j < logits.columns(); ++j) {
      const double z = (logits(i, j) - 0.707107) / 0.282095;
      const double slope = std::exp(-0.5 * z * z) / (0.282095 * std::sqrt(2.0 * std::acos(-1.0)));
      result(i, j) = activation == Activation::softmax ? f(i, j) * (gradient(i, j) - total)
                                                       : slope * gradient(i, j);
    }
  }
  return result;
}

/// What the logits of a product with `keys` keys are multiplied by.
double product_scale(const CastAttentionProblem& problem, int64_t keys) {
  if (problem.activation == Activation::laplace && !problem.has_scale) {
    return keys > 0 ? 1.0 / static_cast<double>(keys) : 0.0;
  }
  return problem.inputs.scale;
}

Matrix surrogates(const CastAttentionProblem& problem, int64_t head) {
  const int64_t dim = problem.inputs.shape.head_dim;
  return read_dense(problem.surrogates + head * problem.clusters * dim, problem.clusters, dim);
}

/// The real tokens that cluster c of sequence b holds; padding counts as an empty slot.
std::vector<int64_t> members(const CastAttentionProblem& problem,
                             const std::vector<int32_t>& indices, int64_t batch, int64_t cluster) {
  const AttentionInputs& inputs = problem.inputs;
  const int64_t tokens = real_length(inputs.key_lengths, batch, inputs.shape.key_length);
  std::vector<int64_t> result;
  for (int64_t slot = 0; slot < problem.cluster_size; ++slot) {
    const int32_t token =
        indices[(batch * problem.clusters + cluster) * problem.cluster_size + slot];
    if (token >= 0 && token < tokens) result.push_back(token);
  }
  return result;
}

/// G, Top-K: each cluster takes the best tokens of its column.
void select_top_k(const Matrix& scores, int64_t cluster_size, int32_t* indices) {
  const Matrix columns = transpose(scores);
  for (int64_t c = 0; c < columns.rows(); ++c) {
    const auto row = columns.data().begin() + c * columns.columns();
    const std::vector<int32_t> order = sorted_indices({row, row + columns.columns()});
    std::copy_n(order.begin(), std::min(cluster_size, columns.columns()),
                indices + c * cluster_size);
  }
}

/// G, single assignment: tokens by descending best score, each to its best cluster with room.
void select_single(const Matrix& scores, int64_t cluster_size, int32_t* indices) {
  std::vector<double> best(scores.rows(), -kInfinity);
  for (int64_t n = 0; n < scores.rows(); ++n) {
    for (int64_t c = 0; c < scores.columns(); ++c) best[n] = std::max(best[n], scores(n, c));
  }
  std::vector<int64_t> filled(scores.columns(), 0);
  for (int32_t token : sorted_indices(best)) {
    const auto row = scores.data().begin() + token * scores.columns();
    for (int32_t cluster : sorted_indices({row, row + scores.columns()})) {
      if (filled[cluster] == cluster_size) continue;
      indices[cluster * cluster_size + filled[cluster]++] = token;
      break;
    }
  }
}

/// Steps 4-7 of one head.
Matrix cast_head(const CastAttentionProblem& problem, const std::vector<int32_t>& indices,
                 int64_t batch, int64_t head) {
  const Sequence sequence = read_sequence(problem.inputs, batch, head);
  const int64_t tokens = sequence.key.rows();
  const int64_t clusters = problem.clusters;
  const float* gate = problem.gate + batch * problem.inputs.shape.key_length;
  const Matrix surrogate = surrogates(problem, head);
  const Matrix query =
      read_rows(problem.inputs.query, batch, head, tokens, problem.inputs.shape.head_dim);
  const Matrix query_affinity = multiply_transposed(query, surrogate);       // A_q (N,C)
  const Matrix key_affinity = multiply_transposed(sequence.key, surrogate);  // A_k (N,C)

  Matrix sum_logits(tokens, clusters);  // step 6
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t c = 0; c < clusters; ++c) {
      sum_logits(n, c) =
          query_affinity(n, c) * softplus1(gate[n]) * product_scale(problem, clusters);
    }
  }
  const Matrix sum_weights = activate(sum_logits, problem.activation);

  Matrix output(tokens, sequence.value.columns());
  for (int64_t c = 0; c < clusters; ++c) {
    const std::vector<int64_t> group = members(problem, indices, batch, c);
    const int64_t size = static_cast<int64_t>(group.size());
    const double scale = product_scale(problem, size);
    const Matrix value = take_rows(sequence.value, group);

    Matrix intra_logits =
        multiply_transposed(take_rows(query, group), take_rows(sequence.key, group));
    Matrix inter_logits(1, size);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) intra_logits(i, j) *= scale;
      inter_logits(0, i) = key_affinity(group[i], c) * softplus1(-gate[group[i]]) * scale;
    }
    const Matrix intra = multiply(activate(intra_logits, problem.activation), value);  // step 4
    const Matrix inter = multiply(activate(inter_logits, problem.activation), value);  // step 5

    for (int64_t n = 0; n < tokens; ++n) {  // step 7
      const auto slot = std::find(group.begin(), group.end(), n);
      for (int64_t e = 0; e < output.columns(); ++e) {
        output(n, e) += sum_weights(n, c) *
                        (slot != group.end() ? intra(slot - group.begin(), e) : inter(0, e));
      }
    }
  }
  return output;
}

/// Adds each row of `rows` to the row of `sum` that it comes from.
void scatter_rows(const Matrix& rows, const std::vector<int64_t>& group, double scale,
                  Matrix& sum) {
  for (int64_t i = 0; i < rows.rows(); ++i) {
    for (int64_t d = 0; d < rows.columns(); ++d) sum(group[i], d) += scale * rows(i, d);
  }
}

/// The gradients of one head; those by the surrogates and the gate are sums over more than it.
class CastHeadGradient {
 public:
  CastHeadGradient(const CastAttentionProblem& problem, int64_t batch, int64_t head,
                   Matrix output_gradient)
      : query(output_gradient.rows(), problem.inputs.shape.head_dim),
        key(output_gradient.rows(), problem.inputs.shape.head_dim),
        value(output_gradient.rows(), problem.inputs.shape.value_dim),
        surrogates(problem.clusters, problem.inputs.shape.head_dim),
        gate(static_cast<size_t>(output_gradient.rows())),
        problem_(problem),
        g_(std::move(output_gradient)),
        q_(read_rows(problem.inputs.query, batch, head, g_.rows(), query.columns())),
        k_(read_rows(problem.inputs.key, batch, head, g_.rows(), query.columns())),
        v_(read_rows(problem.inputs.value, batch, head, g_.rows(), value.columns())),
        s_(reference::surrogates(problem, head)),
        phi_(problem.gate + batch * problem.inputs.shape.key_length),
        query_affinity_(multiply_transposed(q_, s_)),
        key_affinity_(multiply_transposed(k_, s_)),
        sum_scale_(product_scale(problem, problem.clusters)),
        sum_logits_(g_.rows(), problem.clusters),
        weight_gradient_(g_.rows(), problem.clusters) {
    for (int64_t n = 0; n < g_.rows(); ++n) {
      for (int64_t c = 0; c < problem.clusters; ++c) {
        sum_logits_(n, c) = query_affinity_(n, c) * softplus1(phi_[n]) * sum_scale_;
      }
    }
    sum_weights_ = activate(sum_logits_, problem.activation);
  }

  Matrix query;
  Matrix key;
  Matrix value;
  Matrix surrogates;
  std::vector<double> gate;

  /// Steps 4 and 5 of cluster c; also finds the gradients by its column of A_sum.
  void add_cluster(int64_t c, const std::vector<int64_t>& group) {
    const int64_t size = static_cast<int64_t>(group.size());
    const double scale = product_scale(problem_, size);
    const Matrix v = take_rows(v_, group);
    Matrix intra_logits = multiply_transposed(take_rows(q_, group), take_rows(k_, group));
    Matrix inter_logits(1, size);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) intra_logits(i, j) *= scale;
      inter_logits(0, i) = key_affinity_(group[i], c) * softplus1(-phi_[group[i]]) * scale;
    }
    const Matrix intra_weights = activate(intra_logits, problem_.activation);
    const Matrix inter_weights = activate(inter_logits, problem_.activation);
    const Matrix intra = multiply(intra_weights, v);
    const Matrix inter = multiply(inter_weights, v);

    Matrix intra_gradient(size, v.columns());
    Matrix inter_gradient(1, v.columns());
    for (int64_t n = 0; n < g_.rows(); ++n) {
      const int64_t slot = std::find(group.begin(), group.end(), n) - group.begin();
      for (int64_t e = 0; e < v.columns(); ++e) {
        weight_gradient_(n, c) += g_(n, e) * (slot < size ? intra(slot, e) : inter(0, e));
        (slot < size ? intra_gradient(slot, e) : inter_gradient(0, e)) +=
            sum_weights_(n, c) * g_(n, e);
      }
    }
    add_attention(group, scale,
                  activate_gradient(intra_logits, problem_.activation,
                                    multiply_transposed(intra_gradient, v)));
    add_summary(c, group, scale,
                activate_gradient(inter_logits, problem_.activation,
                                  multiply_transposed(inter_gradient, v)));
    scatter_rows(multiply(transpose(intra_weights), intra_gradient), group, 1.0, value);
    scatter_rows(multiply(transpose(inter_weights), inter_gradient), group, 1.0, value);
  }

  /// Step 6, after all clusters.
  void add_sum() {
    const Matrix change = activate_gradient(sum_logits_, problem_.activation, weight_gradient_);
    for (int64_t n = 0; n < g_.rows(); ++n) {
      for (int64_t c = 0; c < problem_.clusters; ++c) {
        const double scaled = change(n, c) * sum_scale_;
        for (int64_t d = 0; d < query.columns(); ++d) {
          query(n, d) += scaled * softplus1(phi_[n]) * s_(c, d);
          surrogates(c, d) += scaled * softplus1(phi_[n]) * q_(n, d);
        }
        gate[n] += scaled * query_affinity_(n, c) * sigmoid(phi_[n]);
      }
    }
  }

 private:
  void add_attention(const std::vector<int64_t>& group, double scale, const Matrix& change) {
    scatter_rows(multiply(change, take_rows(k_, group)), group, scale, query);
    scatter_rows(multiply(transpose(change), take_rows(q_, group)), group, scale, key);
  }

  void add_summary(int64_t c, const std::vector<int64_t>& group, double scale,
                   const Matrix& change) {
    for (size_t i = 0; i < group.size(); ++i) {
      const int64_t n = group[i];
      const double scaled = change(0, static_cast<int64_t>(i)) * scale;
      for (int64_t d = 0; d < key.columns(); ++d) {
        key(n, d) += scaled * softplus1(-phi_[n]) * s_(c, d);
        surrogates(c, d) += scaled * softplus1(-phi_[n]) * k_(n, d);
      }
      gate[n] -= scaled * key_affinity_(n, c) * sigmoid(-phi_[n]);
    }
  }

  const CastAttentionProblem& problem_;
  const Matrix g_;
  const Matrix q_;
  const Matrix k_;
  const Matrix v_;
  const Matrix s_;
  const float* phi_;
  const Matrix query_affinity_;
  const Matrix key_affinity_;
  const double sum_scale_;
  Matrix sum_logits_;
  Matrix sum_weights_;
  Matrix weight_gradient_;
};

}  // namespace

Matrix cast_gate_scores(const CastAttentionProblem& problem, int64_t batch) {
  const AttentionInputs& inputs = problem.inputs;
  const int64_t tokens = real_length(inputs.key_lengths, batch, inputs.shape.key_length);
  Matrix query_sum(tokens, problem.clusters);
  Matrix key_sum(tokens, problem.clusters);
  for (int64_t h = 0; h < inputs.shape.heads; ++h) {
    const int64_t dim = inputs.shape.head_dim;
    const Matrix surrogate = surrogates(problem, h);
    const Matrix q = multiply_transposed(read_rows(inputs.query, batch, h, tokens, dim), surrogate);
    const Matrix k = multiply_transposed(read_rows(inputs.key, batch, h, tokens, dim), surrogate);
    for (int64_t n = 0; n < tokens; ++n) {
      for (int64_t c = 0; c < problem.clusters; ++c) {
        query_sum(n, c) += q(n, c);
        key_sum(n, c) += k(n, c);
      }
    }
  }
  const Matrix query_part = activate(query_sum, problem.activation);
  const Matrix key_part = activate(key_sum, problem.activation);
  Matrix scores(tokens, problem.clusters);
  for (int64_t n = 0; n < tokens; ++n) {
    const double gate = sigmoid(problem.gate[batch * inputs.shape.key_length + n]);
    for (int64_t c = 0; c < problem.clusters; ++c) {
      scores(n, c) = gate * query_part(n, c) + (1.0 - gate) * key_part(n, c);
    }
  }
  return scores;
}

std::vector<int32_t> cast_indices(const CastAttentionProblem& problem) {
  const int64_t slots = problem.clusters * problem.cluster_size;
  std::vector<int32_t> indices(problem.inputs.shape.batch * slots, -1);
  for (int64_t b = 0; b < problem.inputs.shape.batch; ++b) {
    if (problem.selection == Selection::given) {
      std::copy_n(problem.given_indices + b * slots, slots, indices.begin() + b * slots);
    } else if (problem.selection == Selection::top_k) {
      select_top_k(cast_gate_scores(problem, b), problem.cluster_size, indices.data() + b * slots);
    } else {
      select_single(cast_gate_scores(problem, b), problem.cluster_size, indices.data() + b * slots);
    }
  }
  return indices;
}

std::vector<double> cast_attention(const CastAttentionProblem& problem,
                                   const std::vector<int32_t>& indices) {
  const AttentionShape& shape = problem.inputs.shape;
  std::vector<double> output(shape.batch * shape.heads * shape.key_length * shape.value_dim);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      write_rows(cast_head(problem, indices, b, h), b * shape.heads + h, shape.key_length, output);
    }
  }
  return output;
}

CastAttentionGradientResult cast_attention_gradient(const CastAttentionGradientProblem& problem,
                                                    const std::vector<int32_t>& indices) {
  const CastAttentionProblem& forward = problem.forward;
  const AttentionShape& shape = forward.inputs.shape;
  const int64_t rows = shape.batch * shape.heads * shape.key_length;
  CastAttentionGradientResult result;
  result.query.resize(rows * shape.head_dim);
  result.key.resize(rows * shape.head_dim);
  result.value.resize(rows * shape.value_dim);
  result.surrogates.resize(shape.heads * forward.clusters * shape.head_dim);
  result.gate.resize(shape.batch * shape.key_length);
  for (int64_t h = 0; h < shape.heads; ++h) {
    Matrix surrogate_gradient(forward.clusters, shape.head_dim);
    for (int64_t b = 0; b < shape.batch; ++b) {
      const int64_t tokens = real_length(forward.inputs.key_lengths, b, shape.key_length);
      CastHeadGradient gradient(forward, b, h,
                                read_rows(problem.output_gradient, b, h, tokens, shape.value_dim));
      for (int64_t c = 0; c < forward.clusters; ++c) {
        gradient.add_cluster(c, members(forward, indices, b, c));
      }
      gradient.add_sum();
      const int64_t sequence = b * shape.heads + h;
      write_rows(gradient.query, sequence, shape.key_length, result.query);
      write_rows(gradient.key, sequence, shape.key_length, result.key);
      write_rows(gradient.value, sequence, shape.key_length, result.value);
      add_scaled(surrogate_gradient, 1.0, gradient.surrogates);
      for (int64_t n = 0; n < tokens; ++n)
        result.gate[b * shape.key_length + n] += gradient.gate[n];
    }
    write_rows(surrogate_gradient, h, forward.clusters, result.surrogates);
  }
  return result;
}

std::vector<double> cast_coverage(const CastAttentionProblem& problem,
                                  const std::vector<int32_t>& indices) {
  const AttentionInputs& inputs = problem.inputs;
  std::vector<double> coverage;
  for (int64_t b = 0; b < inputs.shape.batch; ++b) {
    const int64_t tokens = real_length(inputs.key_lengths, b, inputs.shape.key_length);
    std::vector<bool> covered(tokens, false);
    for (int64_t c = 0; c < problem.clusters; ++c) {
      for (int64_t token : members(problem, indices, b, c)) covered[token] = true;
    }
    const auto count = std::count(covered.begin(), covered.end(), true);
    coverage.push_back(tokens == 0 ? 1.0 : static_cast<double>(count) / tokens);
  }
  return coverage;
}

}  // namespace cluster_attention::reference
