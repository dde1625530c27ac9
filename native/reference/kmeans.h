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

/// Rows chosen as starting centres. k-means++ (Arthur and Vassilvitskii 2007): each next centre
/// with probability proportional to its squared distance to the nearest centre so far.
std::vector<int64_t> plus_plus_rows(const Matrix& points, int64_t clusters, uint64_t seed);
/// `clusters` distinct rows drawn from the seed.
std::vector<int64_t> sample_rows(int64_t length, int64_t clusters, uint64_t seed);
/// Row 0, then always the row farthest from its nearest chosen row.
std::vector<int64_t> farthest_rows(const Matrix& points, int64_t clusters);
Matrix take_rows(const Matrix& points, const std::vector<int64_t>& rows);

}  // namespace cluster_attention::reference
