#pragma once

// Steps 1 and 2 of CAST (§7): how well tokens fit clusters.
//
//   A_q = sum over heads of q S^T, A_k = sum over heads of k S^T       (N,C), fp32, heads in order
//   A_g = sigma(phi) f(A_q) + (1 - sigma(phi)) f(A_k), f over the clusters
//
// An affinity has the same bits whichever tokens it is formed with.

#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// Up to simd.lanes tokens of a sequence, whose affinities are formed together.
struct TokenTile {
  const int32_t* tokens = nullptr;  // (count); null: those from `first` on
  int64_t first = 0;
  int64_t count = 0;

  int64_t token(int64_t i) const { return tokens != nullptr ? tokens[i] : first + i; }
};

/// Packs the surrogates, once per call.
Status pack_surrogates(const CastState& state);

/// sigma and softplus1 of the gate logits of `count` tokens from `first` on, in double precision.
/// Notices a logit that is not finite.
void fill_gates(const CastState& state, const CastSequence& sequence, int64_t first, int64_t count);

/// A_g of a tile whose gates are there: affinity (C, count), rows `stride` apart. Notices sums
/// that are not finite.
void form_affinities(const CastState& state, const CastSequence& sequence, const TokenTile& tile,
                     int worker, float* affinity, int64_t stride);

/// The same, one row of all clusters for each token: (count, C), rows affinity_row_stride() apart.
/// They stay there until the worker forms others.
float* form_affinity_rows(const CastState& state, const CastSequence& sequence,
                          const TokenTile& tile, int worker);
int64_t affinity_row_stride(const CastState& state);

/// Floats of scratch that a worker needs here.
int64_t affinity_scratch(const CastState& state);

}  // namespace cluster_attention::kernels
