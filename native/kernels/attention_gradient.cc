#include "native/kernels/attention_gradient.h"

#include <algorithm>
#include <limits>

#include "native/core/shape.h"
#include "native/core/softmax_state.h"
#include "native/kernels/finite.h"
#include "native/kernels/key_tile_gradient.h"
#include "native/simd/simd.h"

namespace cluster_attention::kernels {

namespace {

constexpr int64_t kQueriesPerTask = 256;

class AttentionGradientKernel {
 public:
  AttentionGradientKernel(const AttentionGradientProblem& problem, Context& context)
      : problem_(problem), shape_(problem.forward.inputs.shape), context_(context) {}

  Status run() {
    const int64_t sequences = shape_.batch * shape_.heads;
    // As many sequences at a time as keep all threads busy: their partial sums are all there is.
    const int64_t group = std::min<int64_t>(sequences, context_.workers());
    CA_RETURN_IF_ERROR(key_tiles_.prepare(problem_.forward.inputs, problem_.gradients,
                                          shape_.query_length, group, context_));
    maximum_ = context_.workspace().allocate<float>(group * shape_.query_length);
    offset_ = context_.workspace().allocate<float>(group * shape_.query_length);
    if (maximum_ == nullptr || offset_ == nullptr) return Status::out_of_memory();
    for (int64_t first = 0; first < sequences; first += group) {
      CA_RETURN_IF_ERROR(differentiate(first, std::min(group, sequences - first)));
    }
    return Status::success();
  }

 private:
  /// The gradients of sequences [first, first + count).
  Status differentiate(int64_t first, int64_t count) {
    const int64_t chunks = divide_up(shape_.query_length, kQueriesPerTask);
    const double elements = static_cast<double>(count * shape_.query_length);
    CA_RETURN_IF_ERROR(context_.parallel(
        count * chunks,
        [&](int64_t task, int) { find_offsets(first, task / chunks, task % chunks); },
        2.0 * elements * static_cast<double>(shape_.value_dim)));
    const double operations = 2.0 * elements * static_cast<double>(shape_.key_length) *
                              static_cast<double>(3 * shape_.head_dim + 2 * shape_.value_dim);
    // Causal: the first part has the most work; so all sequences' first parts come first.
    CA_RETURN_IF_ERROR(context_.parallel(
        count * key_tiles_.parts(),
        [&](int64_t task, int worker) {
          const int64_t place = task % count;
          key_tiles_.pass(rows_of(first, place), place, task / count, worker, context_);
        },
        operations));
    if (problem_.gradients.query.data == nullptr) return Status::success();
    return context_.parallel(
        count * chunks,
        [&](int64_t task, int) { write_queries(first, task / chunks, task % chunks); },
        elements * static_cast<double>(shape_.head_dim));
  }

  AttendingRows rows_of(int64_t first, int64_t place) const {
    const AttentionInputs& inputs = problem_.forward.inputs;
    AttendingRows rows;
    rows.batch = (first + place) / shape_.heads;
    rows.head = (first + place) % shape_.heads;
    rows.keys = real_length(inputs.key_lengths, rows.batch, shape_.key_length);
    const int64_t masked = masked_queries(rows.batch, rows.keys);
    rows.rows = queries(rows.batch) - masked;
    rows.query = inputs.query.row(rows.batch, rows.head, masked);
    rows.query_stride = inputs.query.row_stride;
    rows.gradient = problem_.output_gradient.row(rows.batch, rows.head, masked);
    rows.gradient_stride = problem_.output_gradient.row_stride;
    rows.maximum = maximum_ + place * shape_.query_length;
    rows.offset = offset_ + place * shape_.query_length;
    rows.causal = problem_.forward.causal;
    rows.bfloat16 = context_.bfloat16_operands();
    return rows;
  }

  int64_t queries(int64_t batch) const {
    return real_length(problem_.forward.inputs.query_lengths, batch, shape_.query_length);
  }
  /// The first queries of a sequence, which see no key: they are not read.
  int64_t masked_queries(int64_t batch, int64_t keys) const {
    return problem_.forward.causal ? std::max<int64_t>(queries(batch) - keys, 0) : 0;
  }

  void find_offsets(int64_t first, int64_t place, int64_t chunk) {
    const AttendingRows rows = rows_of(first, place);
    const int64_t begin = chunk * kQueriesPerTask;
    const int64_t masked = queries(rows.batch) - rows.rows;
    const float* logsumexp =
        problem_.forward.logsumexp + (first + place) * shape_.query_length + masked;
    for (int64_t r = begin; r < std::min(begin + kQueriesPerTask, rows.rows); ++r) {
      const int64_t at = place * shape_.query_length + r;
      maximum_[at] = maximum_of(logsumexp[r]);
      offset_[at] = simd().dot(rows.gradient + r * rows.gradient_stride,
                               problem_.forward.output.row(rows.batch, rows.head, masked + r),
                               shape_.value_dim);
    }
  }

  void write_queries(int64_t first, int64_t place, int64_t chunk) {
    const AttendingRows rows = rows_of(first, place);
    const int64_t begin = chunk * kQueriesPerTask;
    const int64_t masked = queries(rows.batch) - rows.rows;
    bool finite = true;
    for (int64_t l = begin; l < std::min(begin + kQueriesPerTask, shape_.query_length); ++l) {
      float* row = problem_.gradients.query.row(rows.batch, rows.head, l);
      if (l >= masked && l < masked + rows.rows) {
        key_tiles_.total(rows, place, l - masked, row);
        finite = all_finite(row, shape_.head_dim) && finite;
      } else {
        std::fill_n(row, shape_.head_dim, 0.0f);
      }
    }
    if (!finite) context_.mark_non_finite();
  }

  const AttentionGradientProblem& problem_;
  const AttentionShape& shape_;
  Context& context_;
  KeyTileGradient key_tiles_;
  float* maximum_ = nullptr;  // (sequences at a time, L): log-sum-exp, base 2
  float* offset_ = nullptr;   // (sequences at a time, L): delta
};

}  // namespace

float maximum_of(float logsumexp) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return logsumexp == -kInfinity ? kInfinity : saved_in_base2(logsumexp);
}

Status attention_gradient(const AttentionGradientProblem& problem, Context& context) {
  return AttentionGradientKernel(problem, context).run();
}

}  // namespace cluster_attention::kernels
