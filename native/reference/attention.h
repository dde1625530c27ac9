#pragma once

// §1 exact attention: O = softmax(tau Q Kᵀ + mask) V.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct AttentionResult {
  std::vector<double> output;     // (B,H,L,E)
  std::vector<double> logsumexp;  // (B,H,L), -Inf for a row without keys
};

AttentionResult attention(const AttentionProblem& problem);

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
