#pragma once

// What the passes of the backward of CAST (cast_attention_gradient.h) share within one call.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/kernels/assignment.h"
#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// What the clusters of one pair leave for the tokens, by slot. Rows are rounded up to whole
/// vectors.
struct CastSlots {
  float* query;  // (C,kappa,query columns), gradients by query, key and value
  float* key;
  float* value;   // (C,kappa,value columns)
  float* weight;  // (C,kappa): A_sum
  float* total;   // (C,kappa): the gradient by A_sum
  float* gate;    // (C,kappa): what step 5 adds to the gradient by phi
};

struct CastGradientState {
  CastGradientState(const CastAttentionGradientProblem& gradient_problem, Context& context);
  CastGradientState(const CastGradientState&) = delete;
  CastGradientState& operator=(const CastGradientState&) = delete;

  Status allocate(int64_t scratch_size);
  /// Of a pair of the wave.
  CastSlots slots(int64_t pair) const;
  /// Parts into which the tokens of a sequence are cut, each summed on its own.
  int64_t parts(const CastSequence& sequence) const;

  const CastAttentionGradientProblem& problem;
  /// The forward problem with the tokens that it has chosen as given ones.
  const CastAttentionProblem given;
  CastState forward;
  const int64_t head_columns;  // D and E, rounded up to whole vectors
  const int64_t value_columns;

  int64_t maximum_parts = 1;
  AssignmentSumsArray summary_sums;    // (wave,parts): gradients by R_inter, (C,E)
  AssignmentSumsArray surrogate_sums;  // (wave,parts): of step 6, by the surrogates, (C,D)
  float* surrogates = nullptr;         // (wave,C,D): of step 5, by the surrogates
  float* gate = nullptr;               // (wave,N): gradients by phi
};

}  // namespace cluster_attention::kernels
