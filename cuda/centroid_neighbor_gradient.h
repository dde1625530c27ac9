#pragma once

// §6 Backward of centroid attention over lists of neighbors. Launches: one to check the lists, two
// to sort their slots by input, one for what each centroid brings along, one for the pairs, one for
// the inputs' side, one each for the queries and the weights: at most eight.

#include "cuda/centroid_gradient_params.cuh"
#include "cuda/session.h"

namespace cluster_attention::cuda {

/// `params` as centroid_gradient.cu makes it, without scratch memory.
Status centroid_neighbor_gradient(Session& session, const CentroidAttentionGradientProblem& problem,
                                  const OutputTermsParams& params);

}  // namespace cluster_attention::cuda
