#pragma once

// §6 Backward of centroid attention on the GPU. Launches: one for what each centroid brings along,
// one for the inputs' side (one before it with more than 64 centroids), two for the queries, one
// for the weights: at most six. Over lists of neighbors see centroid_neighbor_gradient.h.

#include "cuda/centroid_attention.h"
#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const Call& call);

/// How the arrays of a backward inside another operation are stored and read.
struct CentroidGradientOperands : CentroidOperands {  // `output`: and the gradient by it
  Storage gradients = Storage::float32;               // of query, key and value
  bool accumulate = false;  // to the gradients by key and value, which are float32
};

/// Keys and values that all heads share (head_stride 0) have gradients that all heads share.
Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const CentroidGradientOperands& operands);

}  // namespace cluster_attention::cuda
