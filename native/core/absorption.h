#pragma once

#include "native/core/problem.h"

namespace cluster_attention {

/// Whether absorbing the projections of centroidEncode takes fewer multiplications than projecting
/// the inputs. Per batch entry, with (centroid, input) pairs over all heads and steps,
///
///     projected   2 N d H D + 2 pairs D        absorbed   2 pairs d + 2 T H M d D
inline bool absorbing_is_cheaper(const CentroidEncodeProblem& problem) {
  const double dim = static_cast<double>(problem.dim);
  const double head_dim = static_cast<double>(problem.head_dim);
  const double heads = static_cast<double>(problem.heads);
  const double length = static_cast<double>(problem.length);
  const double partners =
      problem.neighbors != nullptr ? static_cast<double>(problem.neighbor_count) : length;
  const double queries =
      static_cast<double>(problem.steps) * heads * static_cast<double>(problem.centroids);
  const double projected = length * dim * heads * head_dim + queries * partners * head_dim;
  const double absorbed = queries * partners * dim + queries * dim * head_dim;
  return absorbed < projected;
}

}  // namespace cluster_attention
