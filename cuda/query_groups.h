#pragma once

// The queries of clustered attention, grouped on the device; as native/kernels/query_groups.h.

#include "cuda/backend.h"
#include "cuda/operands.h"
#include "cuda/workspace.h"

namespace cluster_attention::cuda {

/// Sequence s = b * H + h.
struct QueryGroups {
  int32_t* labels = nullptr;        // (B,H,L), -1 for padding
  int32_t* offsets = nullptr;       // (B,H,C+1)
  int32_t* order = nullptr;         // (B,H,L): members of cluster c at [offsets[c], offsets[c+1])
  int32_t* active = nullptr;        // (B,H,C): the clusters with members, ascending
  int32_t* active_count = nullptr;  // (B,H)
  float* means = nullptr;           // (B,H,C,D), fp32: mean query of each cluster, 0 if empty
};

/// What else is done on the way.
struct GroupExtras {
  InputRows rows;         // (B,H,L,dim), in the call's storage
  int64_t dim = 0;        // of these
  float* sums = nullptr;  // (B,H,C,dim), optional: of the rows of each group
  const PackParams* packing = nullptr;
};

/// Groups the queries as problem.grouping says and averages them. The arrays live in `scope`.
/// One launch where group_cluster.h allows it; else the grouping's, one or two to sort where the
/// grouping does not, one for the averages and for each extra.
Status group_queries(Session& session, const ClusteredAttentionProblem& problem, const Call& call,
                     DeviceWorkspace::Scope& scope, QueryGroups& groups,
                     const GroupExtras& extras = {});

}  // namespace cluster_attention::cuda
