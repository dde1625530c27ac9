#include "native/kernels/cast_gradient_state.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/centroid_sequence.h"

namespace cluster_attention::kernels {

namespace {

CastAttentionProblem with_given_indices(const CastAttentionProblem& forward) {
  CastAttentionProblem given = forward;
  given.selection = Selection::given;
  given.given_indices = forward.indices;
  given.indices = nullptr;
  given.coverage = nullptr;
  return given;
}

}  // namespace

CastGradientState::CastGradientState(const CastAttentionGradientProblem& gradient_problem,
                                     Context& context)
    : problem(gradient_problem),
      given(with_given_indices(gradient_problem.forward)),
      forward(given, context),
      head_columns(round_up(given.inputs.shape.head_dim, forward.simd.width)),
      value_columns(round_up(given.inputs.shape.value_dim, forward.simd.width)) {}

int64_t CastGradientState::parts(const CastSequence& sequence) const {
  return input_parts(sequence.tokens, given.clusters);
}

Status CastGradientState::allocate(int64_t scratch_size) {
  const AttentionShape& shape = given.inputs.shape;
  const int64_t row = 2 * head_columns + value_columns + 3;
  CA_RETURN_IF_ERROR(
      forward.allocate(checked_size(given.clusters, given.cluster_size, row), scratch_size));
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t tokens = real_length(given.inputs.key_lengths, b, shape.key_length);
    maximum_parts = std::max(maximum_parts, input_parts(tokens, given.clusters));
  }
  Workspace& workspace = forward.context.workspace();
  const int64_t sums = forward.wave * maximum_parts;
  surrogates =
      workspace.allocate<float>(checked_size(forward.wave, given.clusters, shape.head_dim));
  gate = workspace.allocate<float>(checked_size(forward.wave, shape.key_length));
  if (surrogates == nullptr || gate == nullptr ||
      !summary_sums.allocate(sums, given.clusters, shape.value_dim, false, workspace) ||
      !surrogate_sums.allocate(sums, given.clusters, shape.head_dim, false, workspace)) {
    return Status::out_of_memory();
  }
  return Status::success();
}

CastSlots CastGradientState::slots(int64_t pair) const {
  const int64_t count = given.clusters * given.cluster_size;
  CastSlots slots;
  slots.query = forward.pairs + pair * count * (2 * head_columns + value_columns + 3);
  slots.key = slots.query + count * head_columns;
  slots.value = slots.key + count * head_columns;
  slots.weight = slots.value + count * value_columns;
  slots.total = slots.weight + count;
  slots.gate = slots.total + count;
  return slots;
}

}  // namespace cluster_attention::kernels
