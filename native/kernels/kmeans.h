#pragma once

// §2.3 Lloyd's K-means of rows under the Euclidean distance or the cosine.
//
// Method: the rows lie in SIMD lanes (packed once), a tile of them times the centroids gives the
// scores x·c - |c|²/2, whose largest is the nearest centroid (tie: lowest cluster). Under the
// cosine rows and centroids are unit vectors, where the nearest is the one with the largest cosine.
// All are measured from a point amid the starting centroids, which keeps the scores accurate for
// data far from the origin; it lies on a grid so coarse that integers stay integers and their ties
// exact. Scores are fp32; each centroid has one owner, which adds its members in index order in
// double. Inertia, variance and movement are double.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

Status kmeans(const KMeansProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
