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

}  // namespace cluster_attention::reference
