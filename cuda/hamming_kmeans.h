#pragma once

// §2.2 on the device; see hamming_cluster.cuh and hamming_kmeans.cuh for the kernels.

#include "cuda/counting_sort.h"

namespace cluster_attention::cuda {

Status hamming_kmeans(Session& session, const HammingKMeansProblem& problem, const Call& call);

/// How a call is cut; the results do not depend on it.
struct HammingPlan {
  enum class Way {
    clusters,    // hamming_cluster.cuh: one launch, `parts` blocks per sequence
    warpgroups,  // the same by hamming_warpgroups.cuh
    launches,    // one per iteration, `parts` blocks per sequence
  };
  Way way = Way::launches;
  bool shared_counters = true;  // bits are counted on chip first
  int64_t parts = 1;
  int threads = 32;
};

/// The fastest way.
HammingPlan plan_hamming_kmeans(int64_t sequences, int64_t length, int64_t clusters,
                                const ClusterLimits& limits);
/// A given way; false where the sizes do not allow it.
bool plan_hamming_way(HammingPlan::Way way, int64_t sequences, int64_t length, int64_t clusters,
                      const ClusterLimits& limits, HammingPlan& plan);

/// `problem.lengths` holds one length per `heads` consecutive sequences. With `sort`, the labels
/// are sorted too, as by sort_by_label(). Launches: 1, or max_iterations + 2 and those of the sort
/// where a cluster of blocks cannot hold a sequence.
Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads,
                    const SortProblem* sort = nullptr);

/// The same as planned.
Status group_hashes(Session& session, const HammingKMeansProblem& problem, int64_t heads,
                    const HammingPlan& plan, const SortProblem* sort = nullptr);

}  // namespace cluster_attention::cuda
