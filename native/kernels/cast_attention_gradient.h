#pragma once

// §7 Backward of CAST (cast_attention.h). The tokens of each cluster are constants; everything else
// is differentiated, the gate through the factors of steps 5 and 6 (its part in A_g only moves the
// tokens). With g_n the gradient by O_n, w_nc = A_sum[n,c], r_ci the row of R_intra of member i,
// and R_c = R_inter[c],
//
//     by w_nc         g_n.r_cn for the token's own clusters, g_n.R_c for the others
//     by r_ci         w_ic g_i
//     by R_c          sum over the tokens outside of c of w_nc g_n
//
// and then backward through f (cast_activation.h) and the products, as in any attention. With z the
// logits of step 6, y_n = sum_c dz_nc S_c, those of the gate are
//
//     dphi_n = tau sigma(phi_n) q_n.y_n - sum over its clusters of tau sigma(-phi_n) dz_cn k_n.S_c
//
// with z_cn the logits of step 5.
//
// Method, for some (sequence, head) pairs at a time, in three passes that recompute what they need:
// tokens weigh the clusters and so give every summary its gradient (cast_token_gradient.h);
// clusters differentiate their attention, with the summary as one more query, and leave the
// gradients of their members by slot (cast_cluster_gradient.h); tokens differentiate their weights
// and gather from their slots. Every row is written by one owner, in a fixed order. Gradients by
// the surrogates are summed over parts of the tokens, then over the batch, in order.
//
// O(N C (D+E) + N kappa (D+E)) when C kappa is about N; nothing of size N x N or N x C is kept.
// fp32 accumulation, in blocks.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status cast_attention_gradient(const CastAttentionGradientProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
