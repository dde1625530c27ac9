#pragma once

// §1 exact attention: O = softmax(tau Q Kᵀ + mask) V.

#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct AttentionResult {
  std::vector<double> output;     // (B,H,L,E)
  std::vector<double> logsumexp;  // (B,H,L), -Inf for a row without keys
};

AttentionResult attention(const AttentionProblem& problem);

struct AttentionGradientResult {
  std::vector<double> query;  // (B,H,L,D)
  std::vector<double> key;    // (B,H,S,D)
  std::vector<double> value;  // (B,H,S,E)

  explicit AttentionGradientResult(const AttentionShape& shape);
};

/// Of sum output gradient * output, by the chain rule; saved results are not read.
AttentionGradientResult attention_gradient(const AttentionGradientProblem& problem);

/// Backward of softmax_rows: the gradient by the logits, from the weights and the gradient by them.
Matrix softmax_rows_gradient(const Matrix& weights, const Matrix& weights_gradient);

/// tau Q Kᵀ + mask over the real rows of one sequence.
Matrix attention_logits(const AttentionProblem& problem, int64_t batch, int64_t head);
/// Its softmax: the attention weights A, (real queries, real keys).
Matrix attention_weights(const AttentionProblem& problem, int64_t batch, int64_t head);

/// The real rows of one sequence.
struct Sequence {
  Matrix query;  // (real queries, D)
  Matrix key;    // (real keys, D)
  Matrix value;  // (real keys, E)
};
Sequence read_sequence(const AttentionInputs& inputs, int64_t batch, int64_t head);

}  // namespace cluster_attention::reference
