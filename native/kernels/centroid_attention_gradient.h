#pragma once

// §6 Backward of centroid attention. With factor_j = 1 for the sum and 1 / (r_j + 1e-6) for the
// mean, g_j the gradient by output_j, and ĝ_j = factor_j g_j, the gradient by a_ji is
//
//     x_ji = ĝ_j.v_i - offset_j,     offset_j = ĝ_j.output_j for the mean, which depends on a
//                                    through r_j too, 0 for the sum
//
// With the softmax over the centroids, p_ji being its values and a_ji = w_i p_ji,
//
//     dw_i = sum_j p_ji x_ji,   dz_ji = a_ji (x_ji - dw_i)
//
// and with the softmax over the inputs, p_ji = exp(z_ji - logsumexp_j), offset_j = g_j.output_j
// (which is sum_i a_ji ĝ_j.v_i for the sum and the mean alike),
//
//     dz_ji = a_ji x_ji,        dw_i = sum_j p_ji x_ji
//
// Then dq_j = tau sum_i dz_ji k_i, dk_i = tau sum_j dz_ji q_j, dv_i = sum_j a_ji ĝ_j. An input of
// weight 0 is removed: all of its gradients are 0, the one by its weight included.
//
// The two ways to compute it are in centroid_dense_gradient.h and centroid_neighbor_gradient.h.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/kernels/active_inputs.h"
#include "native/kernels/centroid_dense_gradient.h"
#include "native/kernels/centroid_neighbor_gradient.h"
#include "native/kernels/centroid_output_gradient.h"

namespace cluster_attention::kernels {

Status centroid_attention_gradient(const CentroidAttentionGradientProblem& problem,
                                   Context& context);

/// The same for callers that repeat it on changing contents of the same arrays.
class CentroidAttentionGradient {
 public:
  /// `problem` must outlive this object.
  Status prepare(const CentroidAttentionGradientProblem& problem, Context& context);
  /// `accumulate`: the gradients by key and value are added to what their arrays hold.
  Status run(bool accumulate, Context& context);

 private:
  Status clear_inactive(Context& context);
  Status sum_weights(Context& context);

  const CentroidAttentionGradientProblem* problem_ = nullptr;
  ActiveInputs active_;
  CentroidOutputGradient output_;
  DenseGradient dense_;
  NeighborGradient over_neighbors_;
  float* weight_terms_ = nullptr;  // (B,H,N), what each head adds to the gradients of the weights
};

}  // namespace cluster_attention::kernels
