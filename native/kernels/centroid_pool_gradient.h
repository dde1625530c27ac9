#pragma once

// §6 Backward of pooling (centroid_pool.h). From the last step to the first, with G the gradient by
// u after the step, r_j = sum_i a_ji, ĝ_j = G_j / r_j, and s the similarity,
//
//     da_ji = ĝ_j.(x_i - u_j),   ds_ji = a_ji (da_ji - sum_j' a_j'i da_j'i) / t,
//     dx_i += sum_j a_ji ĝ_j + sum_j ds_ji ds(u_j,x_i)/dx_i,   G_j <- sum_i ds_ji ds(u_j,x_i)/du_j
//
// (u_j in da_ji is the mean that the step has made.) A centroid without mass has kept its value:
// its G passes through. With a hard assignment the labels are constants and ds is 0. What is left
// of G belongs to the start: to the inputs that it averages or picks (which ones it picks is a
// constant), or to `initial`.
//
// Method: centroids, and labels of a hard assignment, are kept for all steps, (T,batch,M,d) and
// (T,batch,N). A step is centroid attention with the operands of pool_similarity.h as queries and
// keys and the inputs as values, and its backward that of centroid_dense_gradient.h; gradients by
// the operands of the inputs are summed over the steps.
// Precision: fp32; norms in double.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status centroid_pool_gradient(const CentroidPoolGradientProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
