#pragma once

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

/// Exact attention, O = softmax(scale Q K^T + mask) V, with the online softmax: no L x S matrix.
/// fp32 accumulation; sums over keys are three-level: blocks of kKeyBlock keys, parts of 64 blocks,
/// which are joined in order. Any D, E, L, S.
Status attention(const AttentionProblem& problem, Context& context);

/// One tile of queries, for every kernel that calls simd().attend(): its state, which lives until
/// the last key has been seen, and the scratch of a call, which a worker may use for many tiles.
struct AttendScratch {
  float* packed_query;  // scratch (D, lanes)
  float* scores;        // scratch (kKeyBlock, lanes)
  float* maximum;       // state (lanes)
  float* sum;           // state (lanes)
  float* minimum;       // state (lanes)
  float* output;        // state (E, lanes)

  static int64_t scratch_size(const Simd& simd, int64_t head_dim);
  static int64_t state_size(const Simd& simd, int64_t value_dim);
  /// Lays both out in memory of the caller's.
  static AttendScratch carve(float* scratch, float* state, const Simd& simd, int64_t head_dim);

  /// Starts the state of all lanes: no key seen.
  void reset(const Simd& simd, int64_t value_dim) const;
  /// Joins the state of the same `columns` queries with other keys.
  void join(const AttendScratch& other, const Simd& simd, int64_t columns, int64_t value_dim) const;
  /// The tile description with this scratch, the scale made non-negative (see pack_queries).
  AttendTile tile(int64_t columns, float scale) const;
  /// Packs `columns` query rows; negated when the scale is negative, since attend() wants a
  /// non-negative one.
  void pack_queries(const Simd& simd, const float* rows, int64_t row_stride, const int32_t* index,
                    int64_t columns, int64_t dim, float scale) const;
};

}  // namespace cluster_attention::kernels
