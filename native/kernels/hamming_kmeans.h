#pragma once

// §2.2 K-means of hashes in Hamming space: assign each hash to the nearest centroid (popcount of
// xor; tie: lowest cluster), set each centroid bit to the majority of its members (tie: 0).
//
// Everything is counted in integers, so the order of counting does not matter and sequences are cut
// into as many parts as there are threads for.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention::kernels {

/// `iterations` of the problem may be null.
Status hamming_kmeans(const HammingKMeansProblem& problem, Context& context);

}  // namespace cluster_attention::kernels
