#include "native/kernels/centroid_output_gradient.h"

#include <algorithm>

#include "native/core/shape.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kCentroidsPerTask = 64;

}  // namespace

Status CentroidOutputGradient::prepare(const CentroidAttentionGradientProblem& problem,
                                       Context& context, double added_mass) {
  problem_ = &problem;
  added_mass_ = added_mass;
  const AttentionShape& shape = problem.forward.inputs.shape;
  centroids_ = shape.query_length;
  value_dim_ = shape.value_dim;
  const int64_t rows = shape.batch * shape.heads * centroids_;
  rows_ = context.workspace().allocate<float>(rows * value_dim_);
  offsets_ = context.workspace().allocate<float>(rows);
  return rows_ == nullptr || offsets_ == nullptr ? Status::out_of_memory() : Status::success();
}

Status CentroidOutputGradient::find(Context& context) {
  const AttentionInputs& inputs = problem_->forward.inputs;
  const int64_t heads = inputs.shape.heads;
  const int64_t tasks = divide_up(centroids_, kCentroidsPerTask);
  return context.parallel(inputs.shape.batch * heads * tasks, [&](int64_t task, int) {
    const int64_t sequence = task / tasks;
    const int64_t real = real_length(inputs.query_lengths, sequence / heads, centroids_);
    const int64_t begin = task % tasks * kCentroidsPerTask;
    const int64_t end = std::min(begin + kCentroidsPerTask, real);
    for (int64_t j = begin; j < end; ++j) find_row(sequence, j);
  });
}

void CentroidOutputGradient::find_row(int64_t sequence, int64_t centroid) {
  const CentroidAttentionProblem& forward = problem_->forward;
  const int64_t batch = sequence / forward.inputs.shape.heads;
  const int64_t head = sequence % forward.inputs.shape.heads;
  const float* gradient = problem_->output_gradient.row(batch, head, centroid);
  const float* output = forward.output.row(batch, head, centroid);
  const int64_t row = sequence * centroids_ + centroid;
  const bool mean = forward.aggregate == Collect::mean;
  const bool over_inputs = forward.normalize == Normalize::inputs;

  // Normalised over its inputs, every centroid that has any has the mass 1.
  const double mass = over_inputs || !mean ? 1.0 : forward.masses[row];
  const double divisor = mean ? mass + added_mass_ : 1.0;
  const double factor = divisor != 0.0 ? 1.0 / divisor : 0.0;
  double product = 0.0;
  for (int64_t e = 0; (over_inputs || mean) && e < value_dim_; ++e) {
    product += static_cast<double>(gradient[e]) * output[e];
  }
  offsets_[row] = static_cast<float>(over_inputs ? product : product * factor);
  for (int64_t e = 0; e < value_dim_; ++e) {
    rows_[row * value_dim_ + e] = static_cast<float>(gradient[e] * factor);
  }
}

}  // namespace cluster_attention::kernels
