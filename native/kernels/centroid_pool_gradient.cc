#include "native/kernels/centroid_pool_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/active_inputs.h"
#include "native/kernels/centroid_dense_gradient.h"
#include "native/kernels/centroid_output_gradient.h"
#include "native/kernels/centroid_pooling.h"
#include "native/kernels/finite.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kInputsPerTask = 256;

/// The forward problem with centroids in memory of the backward's own.
CentroidPoolProblem with_output(CentroidPoolProblem problem, float* output) {
  problem.output = output;
  problem.labels = nullptr;
  problem.masses = nullptr;
  return problem;
}

class PoolGradient {
 public:
  PoolGradient(const CentroidPoolGradientProblem& problem, float* centroids, Context& context)
      : problem_(problem),
        forward_(with_output(problem.forward, centroids)),
        context_(context),
        pooling_(forward_, context),
        rows_(forward_.batch * forward_.centroids),
        hard_(forward_.temperature == 0.0f) {}

  Status run();

 private:
  Status allocate();
  Status run_forward();
  void start_gradient();
  Status prepare_soft();
  Status prepare_keys();
  Status soft_step(int64_t step);
  Status hard_step(int64_t step);
  Status finish_keys();
  template <typename Body>
  Status for_inputs(Body body);

  float* state(int64_t step) const { return states_ + step * rows_ * forward_.dim; }
  float* masses(int64_t step) const { return masses_ + step * rows_; }
  int32_t* labels(int64_t step) const {
    return hard_ ? labels_ + step * forward_.batch * forward_.length : nullptr;
  }
  int64_t row(int64_t batch, int64_t j) const { return batch * forward_.centroids + j; }
  int64_t operand_dim() const { return pooling_.similarity().dim(); }

  const CentroidPoolGradientProblem& problem_;
  const CentroidPoolProblem forward_;
  Context& context_;
  CentroidPooling pooling_;
  const int64_t rows_;  // batch*M
  const bool hard_;

  float* states_ = nullptr;      // (T+1,batch,M,d), u
  float* masses_ = nullptr;      // (T,batch,M), r
  int32_t* labels_ = nullptr;    // (T,batch,N), of a hard assignment
  float* gradient_ = nullptr;    // (batch,M,d), G
  float* inputs_ = nullptr;      // (batch,N,d), the gradient wanted; null: not wanted
  int32_t* real_ = nullptr;      // (batch), real centroids
  float* operands_ = nullptr;    // (batch,M,operand dim), of u
  float* by_operand_ = nullptr;  // (batch,M,operand dim)
  float* keys_ = nullptr;        // (batch,N,operand dim), operands of the inputs unless themselves
  float* by_key_ = nullptr;      // (batch,N,operand dim), likewise
  CentroidAttentionGradientProblem attention_;
  ActiveInputs active_;
  CentroidOutputGradient output_;
  DenseGradient dense_;
};

Status PoolGradient::run() {
  inputs_ = problem_.inputs;
  const int64_t elements = forward_.batch * forward_.length * forward_.dim;
  if (inputs_ != nullptr) std::fill_n(inputs_, elements, 0.0f);
  CA_RETURN_IF_ERROR(pooling_.prepare());
  CA_RETURN_IF_ERROR(allocate());
  CA_RETURN_IF_ERROR(run_forward());
  start_gradient();
  const int64_t steps = forward_.iterations;
  // Hard assignments pass over a centroid that is NaN: nothing else tells.
  if (!all_finite(state(steps), rows_ * forward_.dim)) context_.mark_non_finite();
  if (!hard_ && steps > 0) CA_RETURN_IF_ERROR(prepare_soft());
  for (int64_t step = steps - 1; step >= 0; --step) {
    CA_RETURN_IF_ERROR(hard_ ? hard_step(step) : soft_step(step));
  }
  if (by_key_ != nullptr) CA_RETURN_IF_ERROR(finish_keys());
  if (problem_.initial != nullptr) {
    std::copy_n(gradient_, rows_ * forward_.dim, problem_.initial);
  }
  if (inputs_ != nullptr) {
    pooling_.add_start_gradient(gradient_, inputs_);
    if (!all_finite(inputs_, elements)) context_.mark_non_finite();
  }
  if (!all_finite(gradient_, rows_ * forward_.dim)) context_.mark_non_finite();
  return Status::success();
}

Status PoolGradient::allocate() {
  Workspace& workspace = context_.workspace();
  const int64_t steps = forward_.iterations;
  states_ = workspace.allocate<float>(checked_size(steps + 1, rows_, forward_.dim));
  masses_ = workspace.allocate_zeroed<float>(checked_size(steps, rows_));
  labels_ =
      workspace.allocate<int32_t>(hard_ ? checked_size(steps, forward_.batch, forward_.length) : 0);
  gradient_ = workspace.allocate_zeroed<float>(rows_ * forward_.dim);
  real_ = workspace.allocate<int32_t>(forward_.batch);
  const bool complete = states_ != nullptr && masses_ != nullptr && labels_ != nullptr &&
                        gradient_ != nullptr && real_ != nullptr;
  return complete ? Status::success() : Status::out_of_memory();
}

/// States, masses and labels of all steps.
Status PoolGradient::run_forward() {
  const int64_t size = rows_ * forward_.dim;
  std::copy_n(forward_.output, size, state(0));
  for (int64_t step = 0; step < forward_.iterations; ++step) {
    CA_RETURN_IF_ERROR(pooling_.step(labels(step)));
    std::copy_n(forward_.output, size, state(step + 1));
    CA_RETURN_IF_ERROR(pooling_.for_centroids([&](int64_t batch, int64_t j, int) {
      masses(step)[row(batch, j)] = pooling_.mass(batch, j);
    }));
  }
  return Status::success();
}

/// G of the last step: that of the real centroids.
void PoolGradient::start_gradient() {
  for (int64_t b = 0; b < forward_.batch; ++b) {
    real_[b] = static_cast<int32_t>(pooling_.centroids(b));
    const int64_t first = row(b, 0) * forward_.dim;
    std::copy_n(problem_.output_gradient + first, real_[b] * forward_.dim, gradient_ + first);
  }
}

Status PoolGradient::prepare_soft() {
  const int64_t dim = operand_dim();
  Workspace& workspace = context_.workspace();
  operands_ = workspace.allocate<float>(rows_ * dim);
  by_operand_ = workspace.allocate<float>(rows_ * dim);
  if (operands_ == nullptr || by_operand_ == nullptr) return Status::out_of_memory();
  CentroidAttentionProblem& attention = attention_.forward;
  AttentionInputs& inputs = attention.inputs;
  inputs.shape = {forward_.batch, 1, forward_.centroids, forward_.length, dim, forward_.dim};
  inputs.query = dense_rows<const float>(operands_, forward_.centroids, dim);
  inputs.key = dense_rows(forward_.inputs, forward_.length, forward_.dim);
  inputs.value = inputs.key;
  inputs.query_lengths = real_;
  inputs.key_lengths = forward_.lengths;
  inputs.scale = 1.0f / forward_.temperature;
  attention.normalize = Normalize::centroids;
  attention.aggregate = Collect::mean;
  attention_.output_gradient = dense_rows<const float>(gradient_, forward_.centroids, forward_.dim);
  attention_.gradients.query = dense_rows(by_operand_, forward_.centroids, dim);
  if (inputs_ != nullptr) {
    attention_.gradients.value = dense_rows(inputs_, forward_.length, forward_.dim);
    attention_.gradients.key = attention_.gradients.value;
  }
  // The inputs are their own operands under the dot product.
  if (forward_.similarity != Similarity::dot) CA_RETURN_IF_ERROR(prepare_keys());
  CA_RETURN_IF_ERROR(
      active_.find(forward_.batch, forward_.length, forward_.lengths, nullptr, false, context_));
  CA_RETURN_IF_ERROR(output_.prepare(attention_, context_, 0.0));
  return dense_.prepare(attention_, active_, output_, nullptr, context_);
}

Status PoolGradient::prepare_keys() {
  const int64_t dim = operand_dim();
  const int64_t size = forward_.batch * forward_.length * dim;
  keys_ = context_.workspace().allocate<float>(size);
  if (keys_ == nullptr) return Status::out_of_memory();
  attention_.forward.inputs.key = dense_rows<const float>(keys_, forward_.length, dim);
  if (inputs_ != nullptr) {
    by_key_ = context_.workspace().allocate_zeroed<float>(size);
    if (by_key_ == nullptr) return Status::out_of_memory();
    attention_.gradients.key = dense_rows(by_key_, forward_.length, dim);
  }
  return for_inputs([&](int64_t batch, int64_t i) {
    const int64_t input = batch * forward_.length + i;
    pooling_.similarity().prepare_input(batch, i, forward_.inputs + input * forward_.dim,
                                        keys_ + input * dim);
  });
}

/// Calls body(batch, i) for every real input.
template <typename Body>
Status PoolGradient::for_inputs(Body body) {
  const int64_t tasks = divide_up(forward_.length, kInputsPerTask);
  return context_.parallel(
      forward_.batch * tasks,
      [&](int64_t task, int) {
        const int64_t batch = task / tasks;
        const int64_t begin = task % tasks * kInputsPerTask;
        const int64_t end = std::min(begin + kInputsPerTask, pooling_.inputs(batch));
        for (int64_t i = begin; i < end; ++i) body(batch, i);
      },
      4.0 * static_cast<double>(forward_.batch * forward_.length * forward_.dim));
}

Status PoolGradient::soft_step(int64_t step) {
  const int64_t dim = operand_dim();
  CA_RETURN_IF_ERROR(pooling_.for_centroids([&](int64_t batch, int64_t j, int) {
    const int64_t r = row(batch, j);
    pooling_.similarity().prepare_centroid(batch, state(step) + r * forward_.dim,
                                           operands_ + r * dim);
  }));
  attention_.forward.output = dense_rows(state(step + 1), forward_.centroids, forward_.dim);
  attention_.forward.masses = masses(step);
  CA_RETURN_IF_ERROR(output_.find(context_));
  CA_RETURN_IF_ERROR(dense_.run(true, context_));
  return pooling_.for_centroids([&](int64_t batch, int64_t j, int) {
    const int64_t r = row(batch, j);
    if (masses(step)[r] == 0.0f) return;  // it has kept its value, and so its gradient
    pooling_.similarity().centroid_gradient(state(step) + r * forward_.dim, operands_ + r * dim,
                                            by_operand_ + r * dim, gradient_ + r * forward_.dim);
  });
}

Status PoolGradient::hard_step(int64_t step) {
  const int64_t dim = forward_.dim;
  if (inputs_ != nullptr) {
    CA_RETURN_IF_ERROR(for_inputs([&](int64_t batch, int64_t i) {
      const int64_t input = batch * forward_.length + i;
      const int64_t r = row(batch, labels(step)[input]);
      const float mass = masses(step)[r];
      for (int64_t d = 0; d < dim; ++d) inputs_[input * dim + d] += gradient_[r * dim + d] / mass;
    }));
  }
  return pooling_.for_centroids([&](int64_t batch, int64_t j, int) {
    const int64_t r = row(batch, j);
    if (masses(step)[r] != 0.0f) std::fill_n(gradient_ + r * dim, dim, 0.0f);
  });
}

/// From the gradients by the operands of the inputs to those by the inputs.
Status PoolGradient::finish_keys() {
  const int64_t dim = operand_dim();
  return for_inputs([&](int64_t batch, int64_t i) {
    const int64_t input = batch * forward_.length + i;
    pooling_.similarity().add_input_gradient(batch, i, forward_.inputs + input * forward_.dim,
                                             by_key_ + input * dim, inputs_ + input * forward_.dim);
  });
}

}  // namespace

Status centroid_pool_gradient(const CentroidPoolGradientProblem& problem, Context& context) {
  const CentroidPoolProblem& forward = problem.forward;
  float* centroids =
      context.workspace().allocate<float>(forward.batch * forward.centroids * forward.dim);
  if (centroids == nullptr) return Status::out_of_memory();
  return PoolGradient(problem, centroids, context).run();
}

}  // namespace cluster_attention::kernels
