#include "native/kernels/centroid_attention_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/finite.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kInputsPerTask = 1024;

void clear_row(const OutputRows& rows, int64_t batch, int64_t head, int64_t row, int64_t dim) {
  if (rows.data != nullptr) std::fill_n(rows.row(batch, head, row), dim, 0.0f);
}

}  // namespace

Status centroid_attention_gradient(const CentroidAttentionGradientProblem& problem,
                                   Context& context) {
  CentroidAttentionGradient gradient;
  CA_RETURN_IF_ERROR(gradient.prepare(problem, context));
  return gradient.run(false, context);
}

Status CentroidAttentionGradient::prepare(const CentroidAttentionGradientProblem& problem,
                                          Context& context) {
  problem_ = &problem;
  const CentroidAttentionProblem& forward = problem.forward;
  const AttentionShape& shape = forward.inputs.shape;
  CA_RETURN_IF_ERROR(active_.find(shape.batch, shape.key_length, forward.inputs.key_lengths,
                                  forward.weights, forward.normalize == Normalize::inputs,
                                  context));
  CA_RETURN_IF_ERROR(output_.prepare(problem, context));
  if (problem.weights != nullptr) {
    weight_terms_ =
        context.workspace().allocate<float>(shape.batch * shape.heads * shape.key_length);
    if (weight_terms_ == nullptr) return Status::out_of_memory();
  }
  return forward.neighbors != nullptr
             ? over_neighbors_.prepare(problem, active_, output_, weight_terms_, context)
             : dense_.prepare(problem, active_, output_, weight_terms_, context);
}

Status CentroidAttentionGradient::run(bool accumulate, Context& context) {
  CA_RETURN_IF_ERROR(output_.find(context));
  if (!accumulate) CA_RETURN_IF_ERROR(clear_inactive(context));
  CA_RETURN_IF_ERROR(problem_->forward.neighbors != nullptr
                         ? over_neighbors_.run(accumulate, context)
                         : dense_.run(accumulate, context));
  return problem_->weights != nullptr ? sum_weights(context) : Status::success();
}

/// Zeros for inputs that take part in nothing.
Status CentroidAttentionGradient::clear_inactive(Context& context) {
  const AttentionInputs& inputs = problem_->forward.inputs;
  const AttentionShape& shape = inputs.shape;
  const int64_t tasks = divide_up(shape.key_length, kInputsPerTask);
  return context.parallel(shape.batch * shape.heads * tasks, [&](int64_t task, int) {
    const int64_t batch = task / tasks / shape.heads;
    const int64_t head = task / tasks % shape.heads;
    const bool alone = real_length(inputs.query_lengths, batch, shape.query_length) == 0;
    const int64_t begin = task % tasks * kInputsPerTask;
    const int64_t end = std::min(begin + kInputsPerTask, shape.key_length);
    for (int64_t i = begin; i < end; ++i) {
      if (!alone && active_.contains(batch, i)) continue;
      clear_row(problem_->gradients.key, batch, head, i, shape.head_dim);
      clear_row(problem_->gradients.value, batch, head, i, shape.value_dim);
      if (weight_terms_ != nullptr) weight_terms_[task / tasks * shape.key_length + i] = 0.0f;
    }
  });
}

/// weights[b][i] = sum over heads, in order.
Status CentroidAttentionGradient::sum_weights(Context& context) {
  const AttentionShape& shape = problem_->forward.inputs.shape;
  const int64_t length = shape.key_length;
  return context.parallel(
      shape.batch,
      [&](int64_t batch, int) {
        float* sum = problem_->weights + batch * length;
        std::fill_n(sum, length, 0.0f);
        for (int64_t h = 0; h < shape.heads; ++h) {
          const float* terms = weight_terms_ + (batch * shape.heads + h) * length;
          for (int64_t i = 0; i < length; ++i) sum[i] += terms[i];
        }
        for (int64_t i = 0; i < length; ++i) sum[i] *= active_.scale(batch);
        if (!all_finite(sum, length)) context.mark_non_finite();
      },
      static_cast<double>(shape.batch * shape.heads * length));
}

}  // namespace cluster_attention::kernels
