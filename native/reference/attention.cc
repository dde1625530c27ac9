#include "native/reference/attention.h"

namespace cluster_attention::reference {

Sequence read_sequence(const AttentionInputs& inputs, int64_t batch, int64_t head) {
  const AttentionShape& shape = inputs.shape;
  const int64_t queries = real_length(inputs.query_lengths, batch, shape.query_length);
  const int64_t keys = real_length(inputs.key_lengths, batch, shape.key_length);
  return {read_rows(inputs.query, batch, head, queries, shape.head_dim),
          read_rows(inputs.key, batch, head, keys, shape.head_dim),
          read_rows(inputs.value, batch, head, keys, shape.value_dim)};
}

Matrix attention_logits(const AttentionProblem& problem, int64_t batch, int64_t head) {
  const Sequence sequence = read_sequence(problem.inputs, batch, head);
  Matrix logits = multiply_transposed(sequence.query, sequence.key);
  const int64_t offset = logits.columns() - logits.rows();
  for (int64_t l = 0; l < logits.rows(); ++l) {
    for (int64_t s = 0; s < logits.columns(); ++s) {
      const bool visible = !problem.causal || s <= l + offset;
      logits(l, s) = visible ? problem.inputs.scale * logits(l, s) : -kInfinity;
    }
  }
  return logits;
}

Matrix attention_weights(const AttentionProblem& problem, int64_t batch, int64_t head) {
  return softmax_rows(attention_logits(problem, batch, head));
}

AttentionResult attention(const AttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  const int64_t rows = shape.batch * shape.heads * shape.query_length;
  AttentionResult result{std::vector<double>(rows * shape.value_dim),
                         std::vector<double>(rows, -kInfinity)};
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const Matrix logits = attention_logits(problem, b, h);
      const Matrix value = read_sequence(problem.inputs, b, h).value;
      const int64_t sequence = b * shape.heads + h;
      write_rows(multiply(softmax_rows(logits), value), sequence, shape.query_length,
                 result.output);
      const std::vector<double> logsumexp = logsumexp_rows(logits);
      std::copy(logsumexp.begin(), logsumexp.end(),
                result.logsumexp.begin() + sequence * shape.query_length);
    }
  }
  return result;
}

AttentionGradientResult::AttentionGradientResult(const AttentionShape& shape)
    : query(shape.batch * shape.heads * shape.query_length * shape.head_dim),
      key(shape.batch * shape.heads * shape.key_length * shape.head_dim),
      value(shape.batch * shape.heads * shape.key_length * shape.value_dim) {}

Matrix softmax_rows_gradient(const Matrix& weights, const Matrix& weights_gradient) {
  Matrix gradient(weights.rows(), weights.columns());
  for (int64_t i = 0; i < weights.rows(); ++i) {
    double total = 0.0;
    for (int64_t j = 0; j < weights.columns(); ++j) total += weights(i, j) * weights_gradient(i, j);
    for (int64_t j = 0; j < weights.columns(); ++j) {
      gradient(i, j) = weights(i, j) * (weights_gradient(i, j) - total);
    }
  }
  return gradient;
}

AttentionGradientResult attention_gradient(const AttentionGradientProblem& problem) {
  const AttentionInputs& inputs = problem.forward.inputs;
  const AttentionShape& shape = inputs.shape;
  AttentionGradientResult result(shape);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const Sequence rows = read_sequence(inputs, b, h);
      const Matrix weights = attention_weights(problem.forward, b, h);
      const Matrix gradient =
          read_rows(problem.output_gradient, b, h, rows.query.rows(), shape.value_dim);
      const Matrix logit_gradient = scaled(
          softmax_rows_gradient(weights, multiply_transposed(gradient, rows.value)), inputs.scale);
      const int64_t sequence = b * shape.heads + h;
      write_rows(multiply(logit_gradient, rows.key), sequence, shape.query_length, result.query);
      write_rows(multiply(transpose(logit_gradient), rows.query), sequence, shape.key_length,
                 result.key);
      write_rows(multiply(transpose(weights), gradient), sequence, shape.key_length, result.value);
    }
  }
  return result;
}

}  // namespace cluster_attention::reference
