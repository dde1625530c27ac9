#include "cuda/assignment.h"
#include "cuda/centroid_pool.cuh"
#include "cuda/centroid_pool.h"
#include "cuda/centroid_pooling.h"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

Tensor CentroidPooling::inputs() const {
  Tensor tensor;
  tensor.data = problem_.inputs;
  tensor.batch_stride = problem_.length * problem_.dim;
  tensor.row_stride = problem_.dim;
  tensor.storage = call_.storage;
  tensor.round = call_.precision == Precision::bfloat16;
  return tensor;
}

Status CentroidPooling::allocate() {
  const int64_t steps = keeps_ ? problem_.iterations : 0;
  const int64_t elements = checked_size(steps + 1, rows(), problem_.dim);
  const bool hard = problem_.temperature == 0.0f;
  pool_.similarity = problem_.similarity;
  pool_.storage = call_.storage;
  pool_.centroids = problem_.output;
  if (keeps_ || call_.storage == Storage::bfloat16) {
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.centroids, elements));
  }
  pool_.before = pool_.centroids;
  pool_.output = keeps_ ? pool_.centroids : problem_.output;
  CA_RETURN_IF_ERROR(scope_.allocate(&pool_.operands, elements));
  CA_RETURN_IF_ERROR(scope_.allocate(&pool_.origin, checked_size(problem_.batch, problem_.dim)));
  CA_RETURN_IF_ERROR(scope_.allocate(&pool_.inverse_norm, rows()));
  if (problem_.similarity == Similarity::euclidean) {
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.bias, checked_size(steps + 1, rows())));
  }
  if (problem_.similarity == Similarity::cosine) {
    CA_RETURN_IF_ERROR(
        scope_.allocate(&pool_.input_scale, checked_size(problem_.batch, problem_.length)));
  }
  if (keeps_) {
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.step_masses, checked_size(steps, rows())));
    CA_RETURN_IF_ERROR(
        scope_.allocate(&labels_, hard ? checked_size(steps, problem_.batch, problem_.length) : 0));
  } else {
    pool_.masses = problem_.masses;
  }
  CA_RETURN_IF_ERROR(allocate_assignment());
  prepare_start();
  return allocate_start(scope_, start_);
}

void CentroidPooling::prepare_start() {
  start_.batch = problem_.batch;
  start_.length = problem_.length;
  start_.dim = problem_.dim;
  start_.count = problem_.centroids;
  start_.inputs = inputs();
  start_.lengths = problem_.lengths;
  start_.initial = problem_.initial;
  start_.round_initial = call_.precision == Precision::bfloat16;
  start_.start = problem_.start;
  start_.seed = problem_.seed;
  start_.unit_rows = problem_.similarity == Similarity::cosine;
  start_.centroids = pool_.centroids;
  start_.output = pool_.output;
  start_.storage = call_.storage;
  start_.flags = session_.flags();
}

Status CentroidPooling::allocate_assignment() {
  AssignmentParams& params = pool_.assignment;
  params.sequences = problem_.batch;
  params.centroids = problem_.centroids;
  params.inputs = problem_.length;
  params.dim = params.value_dim = problem_.dim;
  params.query.data = pool_.operands;
  params.query.batch_stride = problem_.centroids * problem_.dim;
  params.query.row_stride = problem_.dim;
  params.key = params.value = inputs();
  params.input_lengths = problem_.lengths;
  params.clamp_centroids = true;
  params.row_bias = pool_.bias;
  params.column_scale = pool_.input_scale;
  params.origin = problem_.similarity == Similarity::euclidean ? pool_.origin : nullptr;
  params.hard = problem_.temperature == 0.0f;
  params.exponent = params.hard ? 0.0f : kLog2E / problem_.temperature;
  params.sum_rows = assignment_sum_rows(params.inputs, params.centroids);
  params.flags = session_.flags();
  const int64_t sums = checked_size(problem_.batch, params.sum_rows);
  const int64_t places =
      params.centroids > kTile ? checked_size(problem_.batch, problem_.length) : 0;
  CA_RETURN_IF_ERROR(scope_.allocate(&params.sums, checked_size(sums, problem_.dim)));
  CA_RETURN_IF_ERROR(scope_.allocate(&params.masses, sums));
  CA_RETURN_IF_ERROR(scope_.allocate(&params.maximum, places));
  CA_RETURN_IF_ERROR(scope_.allocate(&params.factor, places));
  return scope_.allocate(&params.best, places);
}

PoolParams CentroidPooling::params(int64_t step) const {
  PoolParams pool = pool_;
  if (!keeps_) return pool;
  const int64_t elements = rows() * problem_.dim;
  pool.centroids += step * elements;
  pool.before = pool.output = pool.centroids;
  pool.operands += step * elements;
  pool.assignment.query.data = pool.operands;
  if (pool.bias != nullptr) pool.bias += step * rows();
  pool.assignment.row_bias = pool.bias;
  pool.step_masses += step * rows();
  if (pool.assignment.hard) {
    pool.assignment.labels = labels_ + step * problem_.batch * problem_.length;
  }
  return pool;
}

Status CentroidPooling::start() {
  CA_RETURN_IF_ERROR(launch_start(session_, start_));
  if (problem_.similarity == Similarity::cosine) {
    // grid: one warp per input
    CA_RETURN_IF_ERROR(launch(session_, divide_up(problem_.batch * problem_.length, kPoolWarps),
                              kPoolThreads, 0, pool_scales, pool_));
  }
  // grid: one block per batch entry
  return launch(session_, problem_.batch, kPoolThreads, 0, open_pool, pool_);
}

Status CentroidPooling::step(int64_t step) {
  PoolParams pool = params(step);
  CA_RETURN_IF_ERROR(launch_assignment(session_, pool.assignment, true));
  if (keeps_) {
    const PoolParams next = params(step + 1);
    pool.centroids = pool.output = next.centroids;
    pool.operands = next.operands;
    pool.bias = next.bias;
  }
  // grid: one warp per centroid
  return launch(session_, divide_up(rows(), kPoolWarps), kPoolThreads, 0, update_pool, pool);
}

Status CentroidPooling::assign() {
  if (problem_.labels == nullptr && problem_.masses == nullptr) return Status::success();
  AssignmentParams params = pool_.assignment;
  params.value_dim = 0;
  params.labels = problem_.labels;
  CA_RETURN_IF_ERROR(launch_assignment(session_, params, true));
  if (problem_.masses == nullptr) return Status::success();
  // grid: one thread per centroid
  return launch(session_, divide_up(rows(), kPoolThreads), kPoolThreads, 0, close_pool, pool_);
}

Status centroid_pool(Session& session, const CentroidPoolProblem& problem, const Call& call) {
  DeviceWorkspace::Scope scope(session.workspace());
  CentroidPooling pooling(session, problem, call, scope, false);
  CA_RETURN_IF_ERROR(pooling.allocate());
  CA_RETURN_IF_ERROR(pooling.start());
  for (int64_t step = 0; step < problem.iterations; ++step) {
    CA_RETURN_IF_ERROR(pooling.step(step));
  }
  return pooling.assign();
}

}  // namespace cluster_attention::cuda
