#pragma once

// §4, §5 Backward of clustered and improved clustered attention on the device. The formulas are in
// native/kernels/clustered_attention_gradient.h. One thing is done otherwise: the attention of the
// mean queries is differentiated as if no keys were selected (gradient_pass.h), and what each
// cluster adds to its top keys takes that back at T_j (top_key_gradient.h), so that the pass over
// all keys need not ask which pairs are selected.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

/// Launches: 1-2 to sort the queries, one each for mean queries, G, operands, terms of the
/// clusters, the pass over all keys, dq̄ and dq. Improved: 1-2 more to sort the top keys, one each
/// for the terms of queries and masses, and two for dk and dv, once per chunk of at most max(2 S,
/// 4096) pairs (cluster, top key). Memory: the converted inputs, two rows per pair of a chunk, and
/// dq̄ at most 64 times.
Status clustered_attention_gradient(Session& session,
                                    const ClusteredAttentionGradientProblem& problem,
                                    const Call& call);

}  // namespace cluster_attention::cuda
