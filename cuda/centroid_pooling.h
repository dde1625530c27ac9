#pragma once

// The steps of pooling on the device (centroid_pool.cuh), one at a time: its backward runs them
// again and keeps what they leave. No kernels here.

#include "cuda/pool_params.cuh"
#include "cuda/session.h"
#include "cuda/start_params.h"

namespace cluster_attention::cuda {

class CentroidPooling {
 public:
  /// `keeps`: every step has arrays of its own, and the problem's results are not written.
  CentroidPooling(Session& session, const CentroidPoolProblem& problem, const Call& call,
                  DeviceWorkspace::Scope& scope, bool keeps)
      : session_(session), problem_(problem), call_(call), scope_(scope), keeps_(keeps) {}

  /// All memory; before the first launch.
  Status allocate();
  /// u⁰ and everything that the steps share.
  Status start();
  Status step(int64_t step);
  /// Labels and masses of the centroids returned.
  Status assign();

  /// The arrays of the centroids before step `step`, with the masses and labels of that step.
  PoolParams params(int64_t step) const;
  const StartParams& start_params() const { return start_; }

 private:
  Tensor inputs() const;
  int64_t rows() const { return problem_.batch * problem_.centroids; }
  Status allocate_assignment();
  void prepare_start();

  Session& session_;
  const CentroidPoolProblem& problem_;
  const Call& call_;
  DeviceWorkspace::Scope& scope_;
  const bool keeps_;
  PoolParams pool_;  // of step 0
  int32_t* labels_ = nullptr;
  StartParams start_;
};

}  // namespace cluster_attention::cuda
