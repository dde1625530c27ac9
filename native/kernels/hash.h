#pragma once

// §2.1 Locality-sensitive hashing: bit b of row x is 1 iff x·plane_b > threshold_b (strict).
//
// Method: the rows of a block times the packed planes is a small matrix product whose epilogue
// turns the comparison with the thresholds into bits. fp32 accumulation, in index order.
// Limits: 1..64 bits.

#include "native/core/context.h"
#include "native/core/problem.h"

namespace cluster_attention {

/// Fills planes (bits,dim+1) with N(0,1) from `seed`; the last column is the threshold, 0 without
/// `bias`. (Vyas et al. 2020, section 3.2; Wang et al., "Hashing for similarity search", 2014.)
Status lsh_planes(int64_t bits, int64_t dim, uint64_t seed, bool bias, Context& context,
                  float* planes);
/// Draws the planes that grouping by hashes needs and the caller has not given.
Status draw_missing_planes(ClusteredAttentionProblem& problem, Context& context);

namespace kernels {

/// Columns of packed planes and of their products: bits past the last one are zero planes.
constexpr int64_t kHashColumns = 64;
/// Rows that hash_rows() multiplies at a time.
constexpr int64_t kHashRows = 64;

Status hash(const HashProblem& problem, Context& context);

/// Hashes the real rows of every (batch, head) of `inputs` with the same planes; with
/// Threshold::data each sequence gets thresholds of its own. Hashes of padded rows are not written.
Status hash_sequences(const InputRows& inputs,  // (batch,heads,length,dim)
                      int64_t batch, int64_t heads, int64_t length, int64_t dim,
                      const int32_t* lengths,  // (batch), or null
                      const float* planes,     // (bits,dim+1)
                      int64_t bits, Threshold threshold, uint64_t seed, Context& context,
                      uint64_t* hashes);  // (batch,heads,length)

/// Splits planes (bits,dim+1) into coefficients and thresholds; false if one of them is not finite.
bool pack_planes(const float* planes, int64_t bits, int64_t dim,
                 float* packed_planes,  // (dim,kHashColumns)
                 float* thresholds);    // (kHashColumns)

/// Hashes rows of one sequence; false if one of them holds NaN or Inf.
bool hash_rows(const float* rows,  // (count,dim), row_stride apart
               int64_t row_stride, int64_t count, int64_t dim, const float* packed_planes,
               const float* thresholds, int64_t bits,
               float* product_scratch,  // (kHashRows,kHashColumns)
               uint64_t* hashes);       // (count)

}  // namespace kernels
}  // namespace cluster_attention
