#pragma once

// §6 Centroid attention on the GPU. Launches: one pass and one merge, one before them with more
// than 64 centroids, one for the objective, and over the inputs one for labels: at most four. With
// neighbors, four over the centroids and two over the inputs, one more for labels and one more for
// the objective, which over the centroids needs the launch of the labels, too.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

Status centroid_attention(Session& session, const CentroidAttentionProblem& problem,
                          const Call& call);

/// How the arrays of a centroid attention inside another operation are stored and read.
struct CentroidOperands {
  Storage query = Storage::float32;
  Storage inputs = Storage::float32;  // keys and values
  Storage output = Storage::float32;
  bool split = true;          // float32 products; else bfloat16 ones
  bool round_inputs = false;  // keys and values to bfloat16 as they are read
  bool round_weights = false;
};

Status centroid_attention(Session& session, const CentroidAttentionProblem& problem,
                          const CentroidOperands& operands);

struct AssignmentParams;  // assignment_params.cuh

/// What the passes of the forward and of the backward share.
AssignmentParams assignment_params(Session& session, const CentroidAttentionProblem& problem,
                                   const CentroidOperands& operands);

}  // namespace cluster_attention::cuda
