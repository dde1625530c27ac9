#pragma once

// §6 Backward of pooling on the GPU. Launches: those of the forward's start and steps, one to open,
// then per step four (five with more than 64 centroids; two with a hard assignment), because every
// step needs the gradient by all centroids after it, and at most three for the start and the
// inputs. The centroids of all steps are kept, (T,batch,M,d).

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_pool_gradient(Session& session, const CentroidPoolGradientProblem& problem,
                              const Call& call);

}  // namespace cluster_attention::cuda
