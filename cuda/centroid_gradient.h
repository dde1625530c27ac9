#pragma once

// §6 Backward of centroid attention on the GPU. Launches: one for what each centroid brings along,
// one for the inputs' side (one before it with more than 64 centroids), two for the queries, one
// for the weights: at most six. Over lists of neighbors see centroid_neighbor_gradient.h.

#include "cuda/session.h"

namespace cluster_attention::cuda {

Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const Call& call);

/// How the arrays of a backward inside another operation are stored and read.
struct CentroidGradientOperands {
  Storage query = Storage::float32;
  Storage inputs = Storage::float32;
  Storage output = Storage::float32;     // and the gradient by it
  Storage gradients = Storage::float32;  // of query, key and value
  bool split = true;                     // float32 products; else bfloat16 ones
  bool round_inputs = false;             // keys and values to bfloat16 as they are read
  bool round_weights = false;
  bool accumulate = false;  // to the gradients by key and value, which are float32
};

/// Keys and values that all heads share (head_stride 0) have gradients that all heads share.
Status centroid_attention_gradient(Session& session,
                                   const CentroidAttentionGradientProblem& problem,
                                   const CentroidGradientOperands& operands);

}  // namespace cluster_attention::cuda
