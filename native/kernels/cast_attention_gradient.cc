#include "native/kernels/cast_attention_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/cast_cluster_gradient.h"
#include "native/kernels/cast_gradient_state.h"
#include "native/kernels/cast_selection.h"
#include "native/kernels/cast_token_gradient.h"
#include "native/kernels/finite.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kClustersPerTask = 16;

/// Adds what each pair of the wave found to the gradients by the surrogates, in the order of the
/// batch.
Status add_surrogates(const CastGradientState& state, int64_t first, int64_t count) {
  // tasks: (head, block of clusters)
  const AttentionShape& shape = state.given.inputs.shape;
  const int64_t clusters = state.given.clusters;
  const int64_t tasks = divide_up(clusters, kClustersPerTask);
  const float scale = state.forward.product_scale(clusters);
  return state.forward.context.parallel(shape.heads * tasks, [&](int64_t task, int worker) {
    const int64_t head = task / tasks;
    const int64_t begin = task % tasks * kClustersPerTask;
    const int64_t end = std::min(begin + kClustersPerTask, clusters);
    float* row = state.forward.scratch(worker);
    for (int64_t pair = 0; pair < count; ++pair) {
      if ((first + pair) % shape.heads != head) continue;
      const CastSequence& sequence = state.forward.sequences[(first + pair) / shape.heads];
      const int64_t parts = sequence.tokens > 0 ? state.parts(sequence) : 0;
      for (int64_t c = begin; c < end; ++c) {
        state.surrogate_sums.total_values(pair * state.maximum_parts, parts, c, row);
        const float* summary = state.surrogates + (pair * clusters + c) * shape.head_dim;
        float* target = state.problem.surrogates + (head * clusters + c) * shape.head_dim;
        for (int64_t d = 0; d < shape.head_dim; ++d) target[d] += row[d] * scale + summary[d];
        if (!all_finite(target, shape.head_dim)) state.forward.context.mark_non_finite();
      }
    }
  });
}

/// Adds what each head of the wave found to the gradients by the gate, in the order of the heads.
Status add_gates(const CastGradientState& state, int64_t first, int64_t count) {
  // tasks: sequences of the wave
  const AttentionShape& shape = state.given.inputs.shape;
  if (count == 0) return Status::success();
  const int64_t first_sequence = first / shape.heads;
  const int64_t sequences = (first + count - 1) / shape.heads + 1 - first_sequence;
  return state.forward.context.parallel(
      sequences,
      [&](int64_t task, int) {
        const CastSequence& sequence = state.forward.sequences[first_sequence + task];
        float* target = state.problem.gate + sequence.batch * shape.key_length;
        const int64_t begin = std::max(first, (first_sequence + task) * shape.heads);
        const int64_t end = std::min(first + count, (first_sequence + task + 1) * shape.heads);
        for (int64_t pair = begin; pair < end; ++pair) {
          const float* terms = state.gate + (pair - first) * shape.key_length;
          for (int64_t n = 0; n < sequence.tokens; ++n) target[n] += terms[n];
        }
        if (!all_finite(target, sequence.tokens)) state.forward.context.mark_non_finite();
      },
      static_cast<double>(count * shape.key_length));
}

}  // namespace

Status cast_attention_gradient(const CastAttentionGradientProblem& problem, Context& context) {
  CastGradientState state(problem, context);
  CA_RETURN_IF_ERROR(check_cast_indices(state.given, context));
  const AttentionShape& shape = state.given.inputs.shape;
  if (problem.surrogates != nullptr) {
    std::fill_n(problem.surrogates, shape.heads * state.given.clusters * shape.head_dim, 0.0f);
  }
  if (shape.batch == 0) return Status::success();  // the other sizes may be huge then
  CA_RETURN_IF_ERROR(
      state.allocate(std::max(cluster_gradient_scratch(state), token_gradient_scratch(state))));
  if (problem.gate != nullptr) std::fill_n(problem.gate, shape.batch * shape.key_length, 0.0f);
  CastState& forward = state.forward;
  for (int64_t batch = 0; batch < shape.batch; batch += forward.group) {
    const int64_t sequences = std::min(forward.group, shape.batch - batch);
    forward.begin_group(batch, sequences);
    CA_RETURN_IF_ERROR(select_members(forward, sequences));
    const int64_t pairs = sequences * shape.heads;
    for (int64_t first = 0; first < pairs; first += forward.wave) {
      const int64_t count = std::min(forward.wave, pairs - first);
      CA_RETURN_IF_ERROR(find_summary_gradients(state, first, count));
      CA_RETURN_IF_ERROR(differentiate_clusters(state, first, count));
      CA_RETURN_IF_ERROR(differentiate_tokens(state, first, count));
      if (problem.surrogates != nullptr) CA_RETURN_IF_ERROR(add_surrogates(state, first, count));
      if (problem.gate != nullptr) CA_RETURN_IF_ERROR(add_gates(state, first, count));
    }
  }
  return Status::success();
}

}  // namespace cluster_attention::kernels
