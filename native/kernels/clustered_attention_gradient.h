#pragma once

// §4, §5 Backward of clustered and improved clustered attention. Labels and top keys T_j are
// constants. With g_i the gradient by output_i, j the cluster of query i, n_j its size, A the
// attention of the mean queries q̄, m̂_j = sum_{t in T_j} A_jt and p_it the softmax over T_j:
//
//   G_j = sum_{i in j} g_i                     the gradient by V^c_j
//
// Clustered (output_i = V^c_j) is the backward of the mean queries' attention:
//
//   dz_js = A_js (G_j·v_s - delta_j),  delta_j = G_j·V^c_j,  dv_s = sum_j A_js G_j,
//   dk_s = tau sum_j dz_js q̄_j,        dq̄_j = tau sum_s dz_js k_s,  dq_i = dq̄_j / n_j
//
// Improved: output_i = sum_{s not in T_j} A_js v_s + m̂_j sum_t p_it v_t. With x_it = g_i·v_t and
// x̄_i = sum_t p_it x_it,
//
//   by p_it:  y_it = m̂_j p_it (x_it - x̄_i):  dq_i += tau sum_t y_it k_t,  dk_t += tau sum_i y_it
//   q_i by v_t:   dv_t += sum_i m̂_j p_it g_i by m̂_j:  mu_j = sum_i x̄_i  (0 where the mass is
//   detached), which is the gradient by every A_jt by A_js:  G_j·v_s outside T_j, mu_j inside; so
//   dz_jt = A_jt (mu_j - delta_j) there, no A_jt G_j
//             in dv_t, and  delta_j = sum_s A_js dA_js = G_j·(V^c_j - sum_t A_jt v_t) + m̂_j mu_j
//
// Three steps: per cluster a small dense product of its queries with the gathered rows of T_j,
// which also gives what the cluster adds to dk and dv of its keys, one row per (cluster, t); then
// the backward over all keys (key_tile_gradient.h), where the owner of a key adds those rows in the
// order of the clusters (a counting sort lists them by key); then dq̄_j / n_j for every member.
// Memory: rows of at most max(2 S, 4096) pairs (cluster, t) at a time, for as many sequences as
// there are threads; more clusters come in chunks. Precision: fp32; q̄, G, m̂ and mu in double.

#include "native/core/context.h"
#include "native/core/gradient_problem.h"

namespace cluster_attention::kernels {

Status clustered_attention_gradient(const ClusteredAttentionGradientProblem& problem,
                                    Context& context);

}  // namespace cluster_attention::kernels
