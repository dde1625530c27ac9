#pragma once

// §6 Centroid pooling on the GPU. Launches: the start (centroid_start.h), one for the operands and
// one for the norms of the inputs (cosine); then two per step, three with more than 64 centroids,
// because every step needs the centroids that all inputs have made; then two (three) for labels and
// masses. Precision 'bfloat16' rounds the inputs and computes in float32.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_pool(Session& session, const CentroidPoolProblem& problem, const Call& call);

}  // namespace cluster_attention::cuda
