#pragma once

// The steps of the learned layer on the device (centroid_encode.h), one at a time: its backward
// runs them again. No kernels here.

#include "cuda/centroid_attention.h"
#include "cuda/centroid_start.h"
#include "cuda/project.h"

namespace cluster_attention::cuda {

class CentroidEncoding {
 public:
  CentroidEncoding(Session& session, const CentroidEncodeProblem& problem, const Call& call,
                   bool absorbed, DeviceWorkspace::Scope& scope)
      : session_(session),
        problem_(problem),
        storage_(call.storage),
        rounds_(call.precision == Precision::bfloat16),
        absorbed_(absorbed),
        width_(problem.heads * problem.head_dim),
        rows_(problem.batch * problem.centroids),
        scope_(scope) {}

  /// All memory but that of the centroids. `with_state`: attend() also finds what the backward of
  /// the attention reads.
  Status allocate(bool with_state);
  /// u⁰, in `stored` as the caller stores it (the same array: not again), and the projections.
  Status start(float* centroids, float* stored);
  /// query() and collected() of the centroids u.
  Status attend(const float* centroids);
  /// u = before + step_size W_o collected.
  Status add_change(const float* before, float* centroids, float* stored);
  /// A projection by one of the problem's weights.
  Status project(ProjectionParams params);

  const int32_t* real_centroids() const { return active_.centroids; }  // (batch), null: all
  const StartParams& start_params() const { return start_; }
  const CentroidAttentionProblem& attention() const { return attention_; }
  const CentroidOperands& operands() const { return operands_; }
  const float* query() const { return query_; }  // (batch,M,H*D)
  /// The attention's output with values projected.
  const float* collected() const { return collected_; }  // (batch,M,H*D)

 private:
  Status allocate_active();
  void prepare_start();
  void prepare_attention();
  ProjectionParams inputs_projection(const float* weight, float* output) const;
  ProjectionParams query_projection(const float* centroids) const;
  ProjectionParams key_absorption() const;
  ProjectionParams value_absorption() const;
  ProjectionParams output_projection(const float* before, float* centroids, float* stored) const;

  Session& session_;
  const CentroidEncodeProblem& problem_;
  const Storage storage_;
  const bool rounds_;
  const bool absorbed_;
  const int64_t width_;  // H*D
  const int64_t rows_;   // batch*M
  DeviceWorkspace::Scope& scope_;
  ActiveParams active_;
  StartParams start_;
  CentroidAttentionProblem attention_;
  CentroidOperands operands_;
  float* query_ = nullptr;               // (batch,M,H*D)
  float* collected_ = nullptr;           // (batch,M,H*D)
  float* key_ = nullptr;                 // (batch,N,H*D)
  float* value_ = nullptr;               // (batch,N,H*D)
  float* absorbed_query_ = nullptr;      // (batch,M,H,d)
  float* absorbed_collected_ = nullptr;  // (batch,M,H,d)
};

}  // namespace cluster_attention::cuda
