#pragma once

// §1 Backward of exact attention: with p_ls = exp(tau q_l·k_s - logsumexp_l) of the keys that query
// l sees, g_l the gradient by output_l and delta_l = g_l·output_l,
//
//     dz_ls = p_ls (g_l·v_s - delta_l)
//     dq_l = tau sum_s dz_ls k_s,    dk_s = tau sum_l dz_ls q_l,    dv_s = sum_l p_ls g_l
//
// Method and precision: key_tile_gradient.h. Rows of padding get 0. Memory beside the gradients:
// two floats per query, and partial sums of dq for as many sequences as there are threads.
// Limits: a log-sum-exp is a float32 number, so weights lose digits as it grows (at 1000 their
// relative error is 6e-5), as they do in the forward.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status attention_gradient(const AttentionGradientProblem& problem, Context& context);

/// The log-sum-exp as KeyTileGradient takes it: base 2, and a row without keys has weights of 0.
float maximum_of(float logsumexp);

}  // namespace cluster_attention::kernels
