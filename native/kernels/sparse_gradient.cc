#include "native/kernels/sparse_gradient.h"

#include <algorithm>

#include "native/core/shape.h"
#include "native/kernels/finite.h"
#include "native/kernels/sparse.h"
#include "native/kernels/sparse_lists.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

/// Rows of queries that are gathered before they are added.
constexpr int64_t kPairBlock = 64;

/// output_s = sum over the slots (l,t) that hold key s of weights_lt rows_l.
struct TransposedSum {
  AttentionShape shape;
  SparseIndices sparse;
  const int32_t* query_lengths;
  const int32_t* key_lengths;
  const float* weights;  // (B,H,L,k)
  InputRows rows;        // (B,H,L,dim)
  int64_t dim;
  OutputRows output;  // (B,H,S,dim)
};

/// Gathers weighted rows and adds them up block by block.
class RowAccumulator {
 public:
  static int64_t size(int64_t dim) { return kPairBlock * (padded(dim) + 1) + padded(dim); }
  RowAccumulator(float* scratch, int64_t dim)
      : dim_(dim),
        rows_(scratch),
        weights_(rows_ + kPairBlock * padded(dim)),
        sum_(weights_ + kPairBlock) {
    std::fill_n(sum_, padded(dim), 0.0f);
  }

  void add(float weight, const float* row) {
    std::copy_n(row, dim_, rows_ + count_ * padded(dim_));
    weights_[count_++] = weight;
    if (count_ == kPairBlock) flush();
  }
  const float* sum() {
    flush();
    return sum_;
  }

 private:
  /// Whole vectors: what stands past `dim` is multiplied and never looked at.
  static int64_t padded(int64_t dim) { return round_up(dim, simd().width); }

  void flush() {
    simd().multiply(weights_, 0, 1, 1, count_, rows_, padded(dim_), dim_, sum_, 0, true);
    count_ = 0;
  }

  int64_t dim_;
  int64_t count_ = 0;
  float* rows_;     // (kPairBlock, padded dim)
  float* weights_;  // (kPairBlock)
  float* sum_;      // (padded dim)
};

Status transposed_sum(const TransposedSum& problem, Context& context) {
  SparseLists lists(problem.shape, problem.sparse, problem.query_lengths, problem.key_lengths);
  CA_RETURN_IF_ERROR(lists.open(context));
  CA_RETURN_IF_ERROR(lists.invert(context));
  const int64_t dim = problem.dim;
  const int64_t size = RowAccumulator::size(dim);
  float* scratch = context.workspace().allocate_zeroed<float>(
      checked_size(static_cast<int64_t>(context.workers()), size));
  if (scratch == nullptr) return Status::out_of_memory();
  const auto sum_key = [&](const ListedSequence& sequence, int64_t key, const KeySlots& listed,
                           int worker) {
    const float* rows = problem.rows.sequence(sequence.batch, sequence.head);
    const float* weights =
        problem.weights + sequence.index * problem.shape.query_length * problem.sparse.k;
    RowAccumulator accumulator(scratch + worker * size, dim);
    for (int64_t i = 0; i < listed.count; ++i) {
      lists.for_each_query_of(sequence, listed.slots[i], [&](int64_t l, int64_t place) {
        accumulator.add(weights[l * problem.sparse.k + place], rows + l * problem.rows.row_stride);
      });
    }
    float* output = problem.output.row(sequence.batch, sequence.head, key);
    std::copy_n(accumulator.sum(), dim, output);
    return all_finite(output, dim);
  };
  return lists.for_each_key(context, sum_key);
}

}  // namespace

Status sparse_dot_gradient(const SparseDotGradientProblem& problem, Context& context) {
  const SparseDotProblem& forward = problem.forward;
  if (problem.query.data != nullptr) {
    SparseWeightedSumProblem query;
    query.shape = forward.shape;
    query.shape.value_dim = forward.shape.head_dim;
    query.weights = problem.output_gradient;
    query.value = forward.key;
    query.sparse = forward.sparse;
    query.query_lengths = forward.query_lengths;
    query.key_lengths = forward.key_lengths;
    query.output = problem.query;
    CA_RETURN_IF_ERROR(sparse_weighted_sum(query, context));
  }
  if (problem.key.data == nullptr) return Status::success();
  return transposed_sum(
      {forward.shape, forward.sparse, forward.query_lengths, forward.key_lengths,
       problem.output_gradient, forward.query, forward.shape.head_dim, problem.key},
      context);
}

Status sparse_weighted_sum_gradient(const SparseWeightedSumGradientProblem& problem,
                                    Context& context) {
  const SparseWeightedSumProblem& forward = problem.forward;
  if (problem.weights != nullptr) {
    SparseDotProblem weights;
    weights.shape = forward.shape;
    weights.shape.head_dim = forward.shape.value_dim;
    weights.query = problem.output_gradient;
    weights.key = forward.value;
    weights.sparse = forward.sparse;
    weights.query_lengths = forward.query_lengths;
    weights.key_lengths = forward.key_lengths;
    weights.output = problem.weights;
    CA_RETURN_IF_ERROR(sparse_products(weights, 0.0f, context));
  }
  if (problem.value.data == nullptr) return Status::success();
  return transposed_sum(
      {forward.shape, forward.sparse, forward.query_lengths, forward.key_lengths, forward.weights,
       problem.output_gradient, forward.shape.value_dim, problem.value},
      context);
}

}  // namespace cluster_attention::kernels
