#pragma once

// Which float arrays a problem reads, row by row: one description feeds both the rounding to
// bfloat16 and the search for the NaN or Inf behind a non-finite result.

#include "native/core/context.h"
#include "native/core/problem.h"
#include "native/core/status.h"

namespace cluster_attention {

/// Whether row `row` of (batch, head) of an argument takes part in the result of `problem`.
using ReadsRow = bool (*)(const void* problem, int64_t batch, int64_t head, int64_t row);

/// One float argument of a problem: a dense array and which of its rows are read.
struct FloatInput {
  const char* name;
  const float** data;  // the problem's pointer, replaced by a rounded copy for bfloat16
  InputRows rows;      // how the array is laid out
  int64_t batch = 1;
  int64_t heads = 1;
  int64_t length = 1;
  int64_t dim = 1;
  const int32_t* lengths = nullptr;  // (batch): rows past it are padding
  ReadsRow reads = nullptr;          // null: every real row is read
};

/// The float arguments of a problem, in the order in which faults are reported.
class FloatInputs {
 public:
  /// Lists the arguments of `problem`, which must outlive this object.
  template <typename Problem>
  explicit FloatInputs(Problem& problem) : problem_(&problem) {
    describe(problem);
  }

  /// Points every argument of the problem at a copy that is rounded to bfloat16.
  Status round(Context& context) const;
  /// The first NaN or Inf in a row that is read; StatusCode::overflow when there is none.
  Status find_non_finite() const;

 private:
  static constexpr int kMaximumInputs = 8;

  void add(const char* name, InputRows& rows, const AttentionShape& shape, int64_t length,
           int64_t dim, const int32_t* lengths, ReadsRow reads = nullptr);
  void add(const char* name, const float*& data, int64_t batch, int64_t length, int64_t dim,
           const int32_t* lengths = nullptr, ReadsRow reads = nullptr);
  void add_attention(AttentionInputs& inputs, ReadsRow reads_query, ReadsRow reads_key);

  void describe(AttentionProblem& problem);
  void describe(ClusteredAttentionProblem& problem);
  void describe(CentroidAttentionProblem& problem);
  void describe(CastAttentionProblem& problem);
  void describe(CentroidPoolProblem& problem);
  void describe(CentroidEncodeProblem& problem);
  void describe(HashProblem& problem);
  void describe(HammingKMeansProblem& problem);
  void describe(KMeansProblem& problem);
  void describe(AggregateProblem& problem);
  void describe(BroadcastProblem& problem);
  void describe(TopKProblem& problem);
  void describe(SparseDotProblem& problem);
  void describe(SparseWeightedSumProblem& problem);

  const void* problem_;
  FloatInput inputs_[kMaximumInputs];
  int count_ = 0;
};

}  // namespace cluster_attention
