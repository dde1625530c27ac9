#pragma once

// §1 Backward of exact attention on the device; see gradient_pass.h.

#include "cuda/backend.h"
#include "cuda/gradient_operands.h"
#include "cuda/workspace.h"

namespace cluster_attention::cuda {

/// One launch for the terms of the rows, one for the gradients, and one more where the inputs are
/// converted. Memory: two floats per query, and the converted inputs.
Status attention_gradient(Session& session, const AttentionGradientProblem& problem,
                          const Call& call);

/// The sources of the operands of a backward: query, gradient of the output, key, value.
constexpr int kGradientSources = 4;
void gradient_sources(const AttentionInputs& inputs, const InputRows& output_gradient,
                      const Call& call, OperandSource (&sources)[kGradientSources]);

}  // namespace cluster_attention::cuda
