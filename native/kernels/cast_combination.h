#pragma once

// Steps 6 and 7 of CAST (§7): every token weighs the clusters.
//
//   A_sum = f(tau (q S^T) softplus1(phi)), f over the clusters
//   O_n = sum over its clusters of A_sum[n,c] R_intra[c,slot] + sum over the others of
//         A_sum[n,c] R_inter[c]
//
// Method: the weights of a token's own clusters are set to zero in the product A_sum R_inter and
// applied to its gathered rows of R_intra instead: nothing is added that would have to be taken
// away again.

#include "native/kernels/cast_state.h"

namespace cluster_attention::kernels {

/// Writes the output of `count` (sequence, head) pairs of the group, from pair `first` on, whose
/// intra and inter are at hand. Padded tokens get 0.
Status combine_clusters(const CastState& state, int64_t first, int64_t count);

/// Products q S^T softplus1(phi) of `columns` tokens from `first` on with every cluster, (C,
/// lanes). Returns what they are still to be multiplied by to be the logits of A_sum: >= 0 for
/// softmax. packed_query is scratch, (D, lanes).
float score_clusters(const CastState& state, const CastSequence& sequence, int64_t head,
                     int64_t first, int64_t columns, float* packed_query, float* scores);

/// Floats of scratch that a worker needs here.
int64_t combination_scratch(const CastState& state);

}  // namespace cluster_attention::kernels
