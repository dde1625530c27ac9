#pragma once

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// Exact attention, O = softmax(scale Q K^T + mask) V, with the online softmax: no L x S matrix.
/// fp32 accumulation; sums over keys are two-level (blocks of kKeyBlock). Any D, E, L, S.
Status attention(const AttentionProblem& problem, Context& context);

/// Scratch and state of one tile of queries, for every kernel that calls simd().attend(). Carved
/// out of one block of memory per worker.
struct AttendScratch {
  float* packed_query;  // (D, lanes)
  float* maximum;       // (lanes)
  float* sum;           // (lanes)
  float* minimum;       // (lanes)
  float* output;        // (E, lanes)
  float* scores;        // (kKeyBlock, lanes)

  static int64_t size(const Simd& simd, int64_t head_dim, int64_t value_dim);
  static AttendScratch carve(float* memory, const Simd& simd, int64_t head_dim, int64_t value_dim);

  /// Starts the state of all lanes: no key seen.
  void reset(const Simd& simd, int64_t value_dim) const;
  /// The tile description with this scratch, the scale made non-negative (see pack_queries).
  AttendTile tile(int64_t columns, float scale) const;
  /// Packs `columns` query rows; negated when the scale is negative, since attend() wants a
  /// non-negative one.
  void pack_queries(const Simd& simd, const float* rows, int64_t row_stride, const int32_t* index,
                    int64_t columns, int64_t dim, float scale) const;
};

}  // namespace cluster_attention::kernels
