#pragma once

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

/// What the backward of centroid attention (centroid_attention_gradient.h) knows of each centroid
/// before it meets an input.
class CentroidOutputGradient {
 public:
  /// Takes all the memory that find() needs; `problem` must outlive this object. A mean divides by
  /// r_j + added_mass; where that is 0, nothing depends on the inputs and ĝ is 0.
  Status prepare(const CentroidAttentionGradientProblem& problem, Context& context,
                 double added_mass = 1e-6);
  Status find(Context& context);

  /// ĝ of one sequence, (M,E).
  const float* rows(int64_t sequence) const { return rows_ + sequence * centroids_ * value_dim_; }
  /// offset of one sequence, (M).
  const float* offsets(int64_t sequence) const { return offsets_ + sequence * centroids_; }

 private:
  void find_row(int64_t sequence, int64_t centroid);

  const CentroidAttentionGradientProblem* problem_ = nullptr;
  double added_mass_ = 0.0;
  int64_t centroids_ = 0;
  int64_t value_dim_ = 0;
  float* rows_ = nullptr;     // (B*H,M,E)
  float* offsets_ = nullptr;  // (B*H,M)
};

}  // namespace cluster_attention::kernels
