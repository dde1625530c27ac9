#pragma once

// §6 Backward of the learned layer (centroid_encode.h). From the last step to the first, with G the
// gradient by u after the step, c = concat_l(...), and the backward of the attention
// (centroid_attention_gradient.h) in between,
//
//     dc = step_size G W_o,   dq, dk, dv from dc,   G <- G + dq W_q
//     dW_o += step_size Gᵀ c,   dW_q += dqᵀ u,   dW_k += dkᵀ x,   dW_v += dvᵀ x,
//     dx += dk W_k + dv W_v
//
// What is left of G belongs to the start: to the inputs that it averages or picks (which ones it
// picks is a constant), or to `initial`.
//
// Method: the states u of all steps are kept, (T,batch,M,d); everything else of a step is computed
// again. As in the forward, keys and values are either projected, dk and dv being summed over the
// steps, or absorbed: then dx is summed itself, and
//
//     dW_v,l += sum dc_l Z_lᵀ,   dZ_l = W_v,lᵀ dc_l,   dW_k,l += sum q_l dq̃_lᵀ,   dq_l = W_k,l dq̃_l
//
// with Z_l = sum_i a_li x_i and q̃_l = W_k,lᵀ q_l. Lists of neighbors are always projected.
// Precision: fp32. Gradients of the weights are sums over the rows of the batch, in order.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status centroid_encode_gradient(const CentroidEncodeGradientProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
