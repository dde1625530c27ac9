#pragma once

// §6 Backward of the learned layer on the GPU (native/kernels/centroid_encode_gradient.h has the
// maths). The centroids of all steps are kept, (T,batch,M,d); what else a step has made is computed
// again. As in the forward, keys and values are either projected, their gradients being summed over
// the steps, or absorbed; lists of neighbors are always projected.
//
// Launches: the forward's start and all but its last step; then per step once more the forward's
// attention and projections, two projections (four when absorbed), two per wanted weight's gradient
// and the backward of the attention; at the end four for the weights of projected inputs, two for
// the inputs, and at most four for the start and the results.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_encode_gradient(Session& session, const CentroidEncodeGradientProblem& problem,
                                const Call& call);

}  // namespace cluster_attention::cuda
