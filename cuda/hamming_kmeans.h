#pragma once

// §2.2 on the device; see hamming_kmeans.cuh for the kernels.

#include "cuda/backend.h"

namespace cluster_attention::cuda {

Status hamming_kmeans(Session& session, const HammingKMeansProblem& problem, const Call& call);

/// `problem.lengths` holds one length per `heads` consecutive sequences. Launches: 1 where a block
/// per sequence does, else max_iterations + 2.
Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads);

/// How a call is cut; the results do not depend on it. Host code, for the launcher and the tests.
struct HammingPlan {
  bool alone = true;            // a block per sequence runs all iterations in one launch
  bool shared_counters = true;  // bits are counted on chip first
  int64_t parts = 1;            // blocks per sequence otherwise
  int threads = 32;
};

HammingPlan plan_hamming_kmeans(int64_t sequences, int64_t length, int64_t clusters,
                                int64_t multiprocessors, int64_t shared_bytes);

}  // namespace cluster_attention::cuda
