#pragma once

// §6 Centroid attention (Wu, Liu and Liu 2021): N inputs -> M centroids,
// output_j = sum_i a_ji v_i (or their mean), with the softmax over the centroids for each input, or
// over the inputs for each centroid. The three ways to compute it are in
// centroid_softmax_over_centroids.h, centroid_softmax_over_inputs.h and
// centroid_neighbor_attention.h.

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/kernels/active_inputs.h"
#include "native/kernels/centroid_neighbor_attention.h"
#include "native/kernels/centroid_softmax_over_centroids.h"
#include "native/kernels/centroid_softmax_over_inputs.h"

namespace cluster_attention::kernels {

Status centroid_attention(const CentroidAttentionProblem& problem, Context& context);

/// The same for callers that repeat it on changing contents of the same arrays: everything that
/// depends on lengths, weights and neighbors, and all memory, is found once.
class CentroidAttention {
 public:
  /// `problem` must outlive this object.
  Status prepare(const CentroidAttentionProblem& problem, Context& context);
  Status run(Context& context);

 private:
  const CentroidAttentionProblem* problem_ = nullptr;
  ActiveInputs active_;
  SoftmaxOverCentroids over_centroids_;
  SoftmaxOverInputs over_inputs_;
  NeighborAttention over_neighbors_;
};

}  // namespace cluster_attention::kernels
