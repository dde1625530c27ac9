#pragma once

// §7 CAST (van Engelenhoven, Strisciuglio, Talavera, "CAST", arXiv 2402.04239): clustered
// self-attention by surrogate tokens S, one per cluster and head.
//
//   A_g = sigma(phi) f(sum_h q S^T) + (1 - sigma(phi)) f(sum_h k S^T)   (N,C)
//   each cluster takes kappa tokens by A_g (cast_selection.h)
//   R_intra = f(tau Q_g K_g^T) V_g, R_inter = f(tau (K_g s) softplus1(-phi))^T V_g per cluster
//   A_sum = f(tau (q S^T) softplus1(phi))                               (N,C)
//   O_n = sum over the clusters c of n of A_sum[n,c] R_intra[c,n]
//       + sum over the others of A_sum[n,c] R_inter[c]
//
// f is softmax or the Laplace function (cast_activation.h). The paper's text could not be checked
// when this was written: selection and the final sum follow its abstract and its reviews, the
// factors softplus1 follow from the gate having to receive a gradient.
//
// Method: A_g of a sequence (cluster-major, N*C floats) is the largest matrix held; then, some
// (sequence, head) pairs at a time, every cluster attends within itself, and every token gathers
// what its clusters found. O(N C (D+E) + N kappa (D+E)) when C kappa is about N. fp32 accumulation;
// gates in double precision.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status cast_attention(const CastAttentionProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
