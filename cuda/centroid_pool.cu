#include "cuda/assignment.h"
#include "cuda/centroid_pool.cuh"
#include "cuda/centroid_pool.h"
#include "cuda/centroid_start.h"
#include "cuda/launch.h"
#include "native/core/shape.h"

namespace cluster_attention::cuda {

namespace {

class CentroidPooling {
 public:
  CentroidPooling(Session& session, const CentroidPoolProblem& problem, const Call& call)
      : session_(session),
        problem_(problem),
        call_(call),
        rows_(problem.batch * problem.centroids),
        scope_(session.workspace()) {}

  Status run() {
    CA_RETURN_IF_ERROR(allocate());
    CA_RETURN_IF_ERROR(launch_start(session_, start_));
    if (problem_.similarity == Similarity::cosine) {
      // grid: one warp per input
      CA_RETURN_IF_ERROR(launch(session_, divide_up(problem_.batch * problem_.length, kPoolWarps),
                                kPoolThreads, 0, pool_scales, pool_));
    }
    // grid: one block per batch entry
    CA_RETURN_IF_ERROR(launch(session_, problem_.batch, kPoolThreads, 0, open_pool, pool_));
    for (int64_t step = 0; step < problem_.iterations; ++step) {
      CA_RETURN_IF_ERROR(launch_assignment(session_, pool_.assignment, true));
      // grid: one warp per centroid
      CA_RETURN_IF_ERROR(
          launch(session_, divide_up(rows_, kPoolWarps), kPoolThreads, 0, update_pool, pool_));
    }
    return assign();
  }

 private:
  Tensor inputs() const {
    Tensor tensor;
    tensor.data = problem_.inputs;
    tensor.batch_stride = problem_.length * problem_.dim;
    tensor.row_stride = problem_.dim;
    tensor.storage = call_.storage;
    tensor.round = call_.precision == Precision::bfloat16;
    return tensor;
  }

  Status allocate() {
    const int64_t elements = checked_size(rows_, problem_.dim);
    pool_.similarity = problem_.similarity;
    pool_.output = problem_.output;
    pool_.storage = call_.storage;
    pool_.masses = problem_.masses;
    pool_.centroids = problem_.output;
    if (call_.storage == Storage::bfloat16) {
      CA_RETURN_IF_ERROR(scope_.allocate(&pool_.centroids, elements));
    }
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.operands, elements));
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.origin, checked_size(problem_.batch, problem_.dim)));
    CA_RETURN_IF_ERROR(scope_.allocate(&pool_.inverse_norm, rows_));
    if (problem_.similarity == Similarity::euclidean) {
      CA_RETURN_IF_ERROR(scope_.allocate(&pool_.bias, rows_));
    }
    if (problem_.similarity == Similarity::cosine) {
      CA_RETURN_IF_ERROR(
          scope_.allocate(&pool_.input_scale, checked_size(problem_.batch, problem_.length)));
    }
    CA_RETURN_IF_ERROR(allocate_assignment());
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
    start_.output = problem_.output;
    start_.storage = call_.storage;
    start_.flags = session_.flags();
    return allocate_start(session_, scope_, start_);
  }

  Status allocate_assignment() {
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

  /// Labels and masses of the centroids returned.
  Status assign() {
    if (problem_.labels == nullptr && problem_.masses == nullptr) return Status::success();
    AssignmentParams params = pool_.assignment;
    params.value_dim = 0;
    params.labels = problem_.labels;
    CA_RETURN_IF_ERROR(launch_assignment(session_, params, true));
    if (problem_.masses == nullptr) return Status::success();
    // grid: one thread per centroid
    return launch(session_, divide_up(rows_, kPoolThreads), kPoolThreads, 0, close_pool, pool_);
  }

  Session& session_;
  const CentroidPoolProblem& problem_;
  const Call& call_;
  const int64_t rows_;  // batch * M
  DeviceWorkspace::Scope scope_;
  PoolParams pool_;
  StartParams start_;
};

}  // namespace

Status centroid_pool(Session& session, const CentroidPoolProblem& problem, const Call& call) {
  return CentroidPooling(session, problem, call).run();
}

}  // namespace cluster_attention::cuda
