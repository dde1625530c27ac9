#pragma once

// Which rows of a sequence become the first centroids of a clustering.

#include "native/reference/matrix.h"

namespace cluster_attention::reference {

/// k-means++ (Arthur and Vassilvitskii 2007): each next centre
/// with probability proportional to its squared distance to the nearest centre so far.
std::vector<int64_t> plus_plus_rows(const Matrix& points, int64_t clusters, uint64_t seed);
/// `clusters` distinct rows drawn from the seed.
std::vector<int64_t> sample_rows(int64_t length, int64_t clusters, uint64_t seed);
/// Row 0, then always the row farthest from its nearest chosen row.
std::vector<int64_t> farthest_rows(const Matrix& points, int64_t clusters);
Matrix take_rows(const Matrix& points, const std::vector<int64_t>& rows);

}  // namespace cluster_attention::reference
