#include "cuda/centroid_gradient_passes.h"
#include "cuda/centroid_pool_gradient.cuh"
#include "cuda/centroid_pool_gradient.h"
#include "cuda/centroid_pooling.h"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class PoolGradient {
 public:
  PoolGradient(Session& session, const CentroidPoolGradientProblem& problem, const Call& call)
      : session_(session),
        problem_(problem),
        forward_(problem.forward),
        call_(call),
        rows_(forward_.batch * forward_.centroids),
        hard_(forward_.temperature == 0.0f),
        scope_(session.workspace()),
        pooling_(session, forward_, call, scope_, true) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(pooling_.start());
    for (int64_t step = 0; step < forward_.iterations; ++step) {
      CA_RETURN_IF_ERROR(pooling_.step(step));
    }
    CA_RETURN_IF_ERROR(open());
    for (int64_t step = forward_.iterations - 1; step >= 0; --step) {
      CA_RETURN_IF_ERROR(hard_ ? hard_step(step) : soft_step(step));
    }
    return close();
  }

 private:
  Status allocate() {
    CA_RETURN_IF_ERROR(pooling_.allocate());
    const int64_t inputs = checked_size(forward_.batch, forward_.length, forward_.dim);
    params_.output_gradient.data = problem_.output_gradient;
    params_.output_gradient.batch_stride = forward_.centroids * forward_.dim;
    params_.output_gradient.row_stride = forward_.dim;
    params_.output_gradient.storage = call_.storage;
    params_.output_gradient.round = call_.precision == Precision::bfloat16;
    params_.initial = problem_.initial;
    CA_RETURN_IF_ERROR(scope_.allocate(&params_.gradient, checked_size(rows_, forward_.dim)));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&params_.origin, checked_size(forward_.batch, forward_.dim)));
    if (problem_.inputs != nullptr) {
      params_.result.rows = dense_rows(problem_.inputs, forward_.length, forward_.dim);
      params_.result.storage = call_.storage;
      params_.inputs = problem_.inputs;
      if (call_.storage == Storage::bfloat16) {
        CA_RETURN_IF_ERROR(scope_.allocate(&params_.inputs, inputs));
      }
      if (forward_.similarity == Similarity::cosine && !hard_) {
        CA_RETURN_IF_ERROR(scope_.allocate(&params_.by_key, inputs));
      }
    }
    return hard_ ? Status::success() : allocate_step();
  }

  /// The parts of the attention's backward that all steps share.
  Status allocate_step() {
    CentroidGradientParams& gradient = step_.gradient;
    gradient.assignment = pooling_.params(0).assignment;
    params_.scale = gradient.scale = 1.0f / forward_.temperature;
    gradient.output_gradient.data = params_.gradient;
    gradient.output_gradient.batch_stride = forward_.centroids * forward_.dim;
    gradient.output_gradient.row_stride = forward_.dim;
    gradient.value_origin = params_.origin;
    gradient.with_changes = gradient.with_query = true;
    gradient.accumulate = true;
    if (problem_.inputs != nullptr) {
      gradient.value.rows = dense_rows(params_.inputs, forward_.length, forward_.dim);
      gradient.key.rows = dense_rows(params_.by_key != nullptr ? params_.by_key : params_.inputs,
                                     forward_.length, forward_.dim);
    }
    step_.mean = true;
    step_.added_mass = 0.0;
    // The forward's sums of the parts are free again.
    return allocate_centroid_gradient(scope_, gradient);
  }

  Status clear(float* inputs) {
    if (inputs == nullptr) return Status::success();
    const int64_t elements = forward_.batch * forward_.length * forward_.dim;
    return session_.check(cudaMemsetAsync(inputs, 0, static_cast<size_t>(elements) * sizeof(float),
                                          session_.stream()));
  }

  Status open() {
    CA_RETURN_IF_ERROR(clear(params_.inputs));
    CA_RETURN_IF_ERROR(clear(params_.by_key));
    params_.pool = pooling_.params(0);
    return over_centroids(open_pool_gradient);
  }

  /// grid: one thread per element of the centroids
  Status over_centroids(void (*kernel)(PoolGradientParams)) {
    return launch(session_, divide_up(rows_ * forward_.dim, kPoolThreads), kPoolThreads, 0, kernel,
                  params_);
  }

  Status soft_step(int64_t step) {
    const PoolParams after = pooling_.params(step + 1);
    CentroidGradientParams& gradient = step_.gradient;
    params_.pool = pooling_.params(step);
    gradient.assignment.query = params_.pool.assignment.query;
    gradient.assignment.row_bias = params_.pool.assignment.row_bias;
    step_.output.data = after.centroids;
    step_.output.batch_stride = forward_.centroids * forward_.dim;
    step_.output.row_stride = forward_.dim;
    step_.masses = params_.pool.step_masses;
    CA_RETURN_IF_ERROR(launch_centroid_gradient(session_, step_, true));
    params_.pool.assignment.sums = gradient.assignment.sums;
    params_.pool.assignment.masses = gradient.assignment.masses;
    // grid: one warp per centroid
    return launch(session_, divide_up(rows_, kPoolWarps), kPoolThreads, 0, step_pool_back, params_);
  }

  Status hard_step(int64_t step) {
    params_.pool = pooling_.params(step);
    if (problem_.inputs != nullptr) {
      // grid: one thread per element of the inputs
      const int64_t elements = forward_.batch * forward_.length * forward_.dim;
      CA_RETURN_IF_ERROR(launch(session_, divide_up(elements, kPoolThreads), kPoolThreads, 0,
                                spread_pool_back, params_));
    }
    return over_centroids(clear_pool_back);
  }

  Status close() {
    params_.pool = pooling_.params(0);
    CA_RETURN_IF_ERROR(over_centroids(close_pool_centroids));
    if (problem_.inputs == nullptr) return Status::success();
    CA_RETURN_IF_ERROR(
        launch_start_gradient(session_, pooling_.start_params(), params_.gradient, params_.inputs));
    // grid: one warp per input
    return launch(session_, divide_up(forward_.batch * forward_.length, kPoolWarps), kPoolThreads,
                  0, close_pool_inputs, params_);
  }

  Session& session_;
  const CentroidPoolGradientProblem& problem_;
  const CentroidPoolProblem& forward_;
  const Call& call_;
  const int64_t rows_;  // batch * M
  const bool hard_;
  DeviceWorkspace::Scope scope_;
  CentroidPooling pooling_;
  PoolGradientParams params_;
  OutputTermsParams step_;
};

}  // namespace

Status centroid_pool_gradient(Session& session, const CentroidPoolGradientProblem& problem,
                              const Call& call) {
  return PoolGradient(session, problem, call).run();
}

}  // namespace cluster_attention::cuda
