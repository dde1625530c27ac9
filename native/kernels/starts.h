#pragma once

// Starting centroids for the clusterings of spec §2 and §6: which rows of one sequence become the
// first centroids, or their strided means. Padding is never read: `length` counts real rows.
//
// The forms that take a Context share the work out over its threads: they are called outside
// Context::parallel().

#include <cstdint>

#include "native/core/context.h"
#include "native/kernels/steps.h"

namespace cluster_attention::kernels {

/// `count` <= length distinct positions in [0, length), the same for every batch and head.
void sample_positions(uint64_t seed, int64_t length, int64_t count,
                      int64_t* positions);  // (count)

/// k-means++ (Arthur and Vassilvitskii, 2007): the first row is floor(u_0 length); row j is drawn
/// with probability proportional to its squared distance to the nearest row so far: the first row
/// at which the running sum of those distances exceeds u_j times their total. When all distances
/// are 0 it is the lowest row not yet chosen. u_j is draw j of the stream plus_plus. Distances are
/// fp32 (double once the largest is out of the range where fp32 tells them apart), their sums
/// double, in index order. `normalize_rows` measures the unit-normalised rows (a
/// zero row stays zero). count <= length.
Status plus_plus_start(const float* rows,  // (length,dim), row_stride apart
                       int64_t row_stride, int64_t length, int64_t dim, int64_t count,
                       uint64_t seed, bool normalize_rows, Context& context,
                       int64_t* chosen);  // (count)

/// The same as steps of a clustering, with scratch of start_scratch(length, dim) bytes.
Status plus_plus_start(const float* rows, int64_t row_stride, int64_t length, int64_t dim,
                       int64_t count, uint64_t seed, bool normalize_rows, Steps steps,
                       char* scratch, int64_t* chosen);
int64_t start_scratch(int64_t length, int64_t dim);

/// Farthest-point start (Gonzalez, 1985): row 0, then always the row farthest from its nearest
/// chosen row (tie: lowest index; when all distances are 0, the lowest row not yet chosen).
Status farthest_start(const float* rows,  // (length,dim), row_stride apart
                      int64_t row_stride, int64_t length, int64_t dim, int64_t count,
                      bool normalize_rows, Context& context,
                      int64_t* chosen);  // (count)

/// Strided means: centroid j is the mean of the rows [floor(j length / count),
/// floor((j + 1) length / count)), summed in double in index order. count <= length.
void stride_start(const float* rows,  // (length,dim), row_stride apart
                  int64_t row_stride, int64_t length, int64_t dim, int64_t count,
                  float* centroids);  // (count,dim)

}  // namespace cluster_attention::kernels
