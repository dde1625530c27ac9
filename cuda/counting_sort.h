#pragma once

// Sorting the rows of every sequence by label on the device; see counting_sort.cuh.

#include "cuda/backend.h"
#include "cuda/cluster_limits.h"

namespace cluster_attention::cuda {

/// The array that a label outside its range is a fault of.
enum class SortArgument : int32_t { labels, indices };

struct SortProblem {
  int64_t sequences = 0;
  int64_t heads = 1;  // sequences per length
  int64_t length = 0;
  int64_t clusters = 0;
  const int32_t* labels = nullptr;   // (sequences,length), -1 is in no cluster
  const int32_t* lengths = nullptr;  // (sequences / heads), or null; padding is in no cluster
  SortArgument argument = SortArgument::labels;
  int64_t length_unit = 1;          // rows that one unit of a length stands for
  int64_t part_rows = 0;            // 0: sort_part_rows(clusters)
  int32_t* clean = nullptr;         // (sequences,length), optional: labels, -1 for padding
  int32_t* offsets = nullptr;       // (sequences,clusters+1)
  int32_t* order = nullptr;         // (sequences,length), the members of cluster c from offsets[c]
  int32_t* active = nullptr;        // (sequences,clusters), optional: clusters with members
  int32_t* active_count = nullptr;  // (sequences), with `active`
};

/// As kernels::sort_by_label for every sequence: stable, so that the members of a cluster ascend. A
/// label outside -1..clusters-1 is a fault of `argument` and counts as -1. One launch, or two where
/// a cluster of blocks cannot hold the labels of a sequence.
Status sort_by_label(Session& session, const SortProblem& problem);

/// Blocks that one sequence is shared out to where a cluster of them sorts it; 0 where two launches
/// do.
struct SortPlan {
  int64_t parts = 0;
  int64_t warps = 1;     // of a block
  int64_t run_rows = 0;  // of a warp
};
SortPlan plan_sort_clusters(int64_t sequences, int64_t length, int64_t clusters,
                            const ClusterLimits& limits);
/// The same as planned.
Status sort_by_label(Session& session, const SortProblem& problem, const SortPlan& plan);

/// Rows that one warp sorts: so many that the counts of all parts need no more memory than the rows
/// themselves, up to a factor of 8.
int64_t sort_part_rows(int64_t clusters);

}  // namespace cluster_attention::cuda
