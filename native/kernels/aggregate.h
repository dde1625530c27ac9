#pragma once

// §2.4 Aggregate: the mean (or sum) of the member rows of each cluster, 0 for an empty one.
//
// Method: a counting sort by label; every cluster has one owner, which adds its members in index
// order in double precision, so that the result depends on nothing but the members.
//
// Gradient: every member takes its cluster's row of the output gradient (divided by the number of
// members for the mean).

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/core/shape.h"

namespace cluster_attention::kernels {

Status aggregate(const AggregateProblem& problem, Context& context);
Status aggregate_gradient(const AggregateGradientProblem& problem, Context& context);

/// Aggregates clusters of one sequence that sort_by_label() has sorted; false if a value written is
/// not finite. Needs no context: callers share out ranges of clusters by passing order as it is,
/// offsets + first and output + first * dim.
bool aggregate_sorted(const float* rows,  // (length,dim), row_stride apart
                      int64_t row_stride,
                      const int32_t* order,    // (length)
                      const int32_t* offsets,  // (clusters+1)
                      int64_t clusters, int64_t dim, bool mean,
                      float* output);  // (clusters,dim)

/// The same for clusters [clusters.begin, clusters.end), `offsets` of all of them, from the labels
/// as they are: the rows are read in the order of the memory, which is quicker where `sums` stays
/// in the cache.
bool aggregate_labelled(const float* rows,  // (length,dim), row_stride apart
                        int64_t row_stride,
                        const int32_t* labels,  // (length), -1 for none
                        int64_t length, const int32_t* offsets, Range clusters, int64_t dim,
                        bool mean,
                        double* sums,    // (clusters.size(),dim), scratch
                        float* output);  // (clusters.size(),dim)

/// sums[d] = sum over the members, in the order given, of rows[member][d] in double; with `scales`
/// (a factor per row) of rows[member][d] * scales[member].
void sum_members(const float* rows, int64_t row_stride,
                 const int32_t* members,  // (count)
                 int64_t count, const double* scales, int64_t dim,
                 double* sums);  // (dim)

}  // namespace cluster_attention::kernels
