#pragma once

// §2.3 Lloyd's K-means under the Euclidean distance or the cosine.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct KMeansResult {
  std::vector<double> centroids;    // (batch,heads,C,dim), 0 past the clamp
  std::vector<int32_t> labels;      // (batch,heads,length), -1 for padding
  std::vector<int32_t> counts;      // (batch,heads,C)
  std::vector<double> inertia;      // (batch,heads)
  std::vector<int32_t> iterations;  // (batch,heads)
};

KMeansResult kmeans(const KMeansProblem& problem);

/// Rows divided by their length; a row of zeros stays.
Matrix normalize_rows(const Matrix& points);
/// Nearest centroid of each point (cosine: points and centroids are of unit length).
std::vector<int32_t> nearest_centroids(const Matrix& points, const Matrix& centroids,
                                       Metric metric);

}  // namespace cluster_attention::reference
