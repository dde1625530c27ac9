#pragma once

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/core/shape.h"

namespace cluster_attention::kernels {

/// The queries of every sequence (b,h), sorted by cluster. Sequence s = b * H + h.
struct QueryGroups {
  int32_t* labels = nullptr;        // (B,H,L), -1 for padding
  int32_t* offsets = nullptr;       // (B,H,C+1)
  int32_t* order = nullptr;         // (B,H,L): members of cluster c at [offsets[c], offsets[c+1])
  int32_t* active = nullptr;        // (B,H,C): the clusters with members, ascending
  int32_t* active_count = nullptr;  // (B,H)
  float* means = nullptr;           // (B,H,C,D): mean query of each cluster
  double* sums = nullptr;  // (workers,C,max(D,E)), scratch; null where it would not stay in a cache
};

/// Groups the queries as problem.grouping says. The arrays live in the context's workspace; means
/// are left to average_queries().
Status group_queries(const ClusteredAttentionProblem& problem, Context& context,
                     QueryGroups& groups);
/// Sums, or averages, rows that belong to the queries of some sequences over every cluster.
Status aggregate_queries(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                         Range sequences, const InputRows& rows, int64_t dim, bool mean,
                         float* output,  // (sequences.size(),C,dim)
                         Context& context);
/// Writes the mean queries of some sequences.
Status average_queries(const ClusteredAttentionProblem& problem, const QueryGroups& groups,
                       Range sequences, Context& context);

}  // namespace cluster_attention::kernels
