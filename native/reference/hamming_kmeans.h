#pragma once

// §2.2 K-means of hashes under the Hamming distance.

#include "native/core/problem.h"
#include "native/reference/matrix.h"

namespace cluster_attention::reference {

struct HammingKMeansResult {
  std::vector<int32_t> labels;      // (batch,length), -1 for padding
  std::vector<int32_t> counts;      // (batch,C)
  std::vector<uint64_t> centroids;  // (batch,C), 0 past the clamp
  std::vector<int32_t> iterations;  // (batch)
};

HammingKMeansResult hamming_kmeans(const HammingKMeansProblem& problem);

/// One sequence of real hashes; `initial` may be null.
HammingKMeansResult hamming_kmeans(const std::vector<uint64_t>& hashes, int64_t clusters,
                                   int64_t max_iterations, uint64_t seed, const uint64_t* initial);

}  // namespace cluster_attention::reference
