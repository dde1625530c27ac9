#pragma once

// Grouping, sorting and sums over the groups in one launch; see group_cluster.cuh.

#include "cuda/hamming_kmeans.h"
#include "cuda/hash.h"
#include "cuda/member_sums.h"
#include "cuda/operands.h"

namespace cluster_attention::cuda {

constexpr int kMostGroupSums = 2;

/// Pointers are to objects of the caller.
struct GroupProblem {
  const HashSequences* hashing = nullptr;  // null: sort.labels are given
  HammingKMeansProblem kmeans;             // of these hashes
  SortProblem sort;                        // of the labels
  MemberSumsProblem sums[kMostGroupSums];  // over the sorted groups
  int sum_count = 0;
  const PackParams* packing = nullptr;  // optional, on the way
};

/// All of it in one launch, `*done`; or nothing, where the sequences do not fit on chip, are more
/// than run at once, or take thresholds of the data, or the device has no clusters of blocks. The
/// results are those of the single steps, bit for bit; hashes are not written.
Status group_at_once(Session& session, const GroupProblem& problem, const Call& call, bool* done);

/// The same as if these were the device's limits.
Status group_at_once(Session& session, const GroupProblem& problem, const Call& call,
                     const ClusterLimits& limits, bool* done);

}  // namespace cluster_attention::cuda
