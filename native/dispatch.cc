#include "native/dispatch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "native/core/shape.h"
#include "native/kernels/aggregate.h"
#include "native/kernels/attention.h"
#include "native/kernels/broadcast.h"
#include "native/kernels/cast_attention.h"
#include "native/kernels/centroid_attention.h"
#include "native/kernels/centroid_encode.h"
#include "native/kernels/centroid_pool.h"
#include "native/kernels/clustered_attention.h"
#include "native/kernels/hamming_kmeans.h"
#include "native/kernels/hash.h"
#include "native/kernels/kmeans.h"
#include "native/kernels/sparse.h"
#include "native/kernels/top_k.h"

namespace cluster_attention {

namespace {

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
  const float* weights = nullptr;    // (batch,length): rows of weight 0 are never read
};

/// The float arguments of a problem, in the order in which faults are reported.
class FloatInputs {
 public:
  void add(const char* name, InputRows& rows, const AttentionShape& shape, int64_t length,
           int64_t dim, const int32_t* lengths, const float* weights = nullptr) {
    add({name, &rows.data, rows, shape.batch, shape.heads, length, dim, lengths, weights});
  }

  void add(const char* name, const float*& data, int64_t batch, int64_t length, int64_t dim,
           const int32_t* lengths = nullptr, const float* weights = nullptr) {
    if (data == nullptr) return;
    add({name, &data, dense_rows(data, length, dim), batch, 1, length, dim, lengths, weights});
  }

  /// Points every argument at a copy that is rounded to bfloat16.
  Status round(Context& context) const;
  /// The first NaN or Inf in a row that is read.
  Status find_non_finite() const;

 private:
  static constexpr int kMaximumInputs = 8;

  void add(const FloatInput& input) { inputs_[count_++] = input; }

  FloatInput inputs_[kMaximumInputs];
  int count_ = 0;
};

/// The nearest bfloat16, ties to even; NaN stays NaN.
float round_to_bfloat16(float value) {
  if (value != value) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

Status FloatInputs::round(Context& context) const {
  for (int i = 0; i < count_; ++i) {
    const FloatInput& input = inputs_[i];
    const int64_t size = input.batch * input.heads * input.length * input.dim;
    float* rounded = context.workspace().allocate<float>(size);
    if (rounded == nullptr) return Status::out_of_memory();
    const float* source = *input.data;
    constexpr int64_t kElementsPerTask = 1 << 16;
    CA_RETURN_IF_ERROR(context.parallel(
        divide_up(size, kElementsPerTask),
        [&](int64_t task, int) {
          const int64_t end = std::min(size, (task + 1) * kElementsPerTask);
          for (int64_t j = task * kElementsPerTask; j < end; ++j) {
            rounded[j] = round_to_bfloat16(source[j]);
          }
        },
        static_cast<double>(size)));
    *input.data = rounded;
  }
  return Status::success();
}

Status FloatInputs::find_non_finite() const {
  for (int i = 0; i < count_; ++i) {
    const FloatInput& input = inputs_[i];
    int64_t first = -1;
    for (int64_t b = 0; b < input.batch; ++b) {
      const int64_t length = real_length(input.lengths, b, input.length);
      for (int64_t h = 0; h < input.heads; ++h) {
        for (int64_t r = 0; r < length; ++r) {
          if (input.weights != nullptr && input.weights[b * input.length + r] == 0.0f) continue;
          const float* row = input.rows.row(b, h, r);
          for (int64_t d = 0; d < input.dim; ++d) {
            const int64_t index = row + d - input.rows.data;
            if (!std::isfinite(row[d]) && (first < 0 || index < first)) first = index;
          }
        }
      }
    }
    if (first >= 0) return {StatusCode::non_finite, input.name, first};
  }
  return {StatusCode::overflow, nullptr, -1};
}

// ---- what each problem reads --------------------------------------------------------------------

void describe(AttentionInputs& inputs, FloatInputs& list, const float* weights = nullptr) {
  const AttentionShape& shape = inputs.shape;
  list.add("query", inputs.query, shape, shape.query_length, shape.head_dim, inputs.query_lengths);
  list.add("key", inputs.key, shape, shape.key_length, shape.head_dim, inputs.key_lengths, weights);
  list.add("value", inputs.value, shape, shape.key_length, shape.value_dim, inputs.key_lengths,
           weights);
}

void describe(AttentionProblem& problem, FloatInputs& list) { describe(problem.inputs, list); }

void describe(ClusteredAttentionProblem& problem, FloatInputs& list) {
  describe(problem.inputs, list);
  list.add("planes", problem.planes, 1, problem.bits, problem.inputs.shape.head_dim + 1);
}

void describe(CentroidAttentionProblem& problem, FloatInputs& list) {
  const AttentionShape& shape = problem.inputs.shape;
  describe(problem.inputs, list, problem.weights);
  list.add("weights", problem.weights, shape.batch, shape.key_length, 1,
           problem.inputs.key_lengths);
}

void describe(CastAttentionProblem& problem, FloatInputs& list) {
  AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  inputs.query_lengths = inputs.key_lengths;  // self-attention
  describe(inputs, list);
  list.add("surrogates", problem.surrogates, 1, shape.heads * problem.clusters, shape.head_dim);
  list.add("gate", problem.gate, shape.batch, shape.key_length, 1, inputs.key_lengths);
}

void describe(CentroidPoolProblem& problem, FloatInputs& list) {
  list.add("inputs", problem.inputs, problem.batch, problem.length, problem.dim, problem.lengths);
  list.add("initial", problem.initial, problem.batch, problem.centroids, problem.dim);
}

void describe(CentroidEncodeProblem& problem, FloatInputs& list) {
  const int64_t inner = problem.heads * problem.head_dim;
  list.add("inputs", problem.inputs, problem.batch, problem.length, problem.dim, nullptr,
           problem.weights);
  list.add("initial", problem.initial, problem.batch, problem.centroids, problem.dim);
  list.add("queryWeight", problem.query_weight, 1, inner, problem.dim);
  list.add("keyWeight", problem.key_weight, 1, inner, problem.dim);
  list.add("valueWeight", problem.value_weight, 1, inner, problem.dim);
  list.add("outputWeight", problem.output_weight, 1, problem.dim, inner);
  list.add("weights", problem.weights, problem.batch, problem.length, 1);
}

void describe(HashProblem& problem, FloatInputs& list) {
  list.add("inputs", problem.inputs, 1, problem.rows, problem.dim);
  list.add("planes", problem.planes, 1, problem.bits, problem.dim + 1);
}

void describe(HammingKMeansProblem&, FloatInputs&) {}

void describe(KMeansProblem& problem, FloatInputs& list) {
  AttentionShape shape;
  shape.batch = problem.batch;
  shape.heads = problem.heads;
  list.add("inputs", problem.inputs, shape, problem.length, problem.dim, problem.lengths);
  list.add("initial", problem.initial, problem.batch * problem.heads, problem.clusters,
           problem.dim);
}

void describe(AggregateProblem& problem, FloatInputs& list) {
  AttentionShape shape;
  shape.batch = problem.batch;
  shape.heads = problem.heads;
  list.add("inputs", problem.inputs, shape, problem.length, problem.dim, nullptr);
}

void describe(BroadcastProblem& problem, FloatInputs& list) {
  list.add("inputs", problem.inputs, problem.batch, problem.clusters, problem.dim);
}

void describe(TopKProblem& problem, FloatInputs& list) {
  // A row of scores counts as a sequence of columns, since its length says how many are read.
  list.add("scores", problem.scores, problem.rows, problem.columns, 1, problem.lengths);
}

void describe(SparseDotProblem& problem, FloatInputs& list) {
  const AttentionShape& shape = problem.shape;
  list.add("query", problem.query, shape, shape.query_length, shape.head_dim,
           problem.query_lengths);
  list.add("key", problem.key, shape, shape.key_length, shape.head_dim, problem.key_lengths);
}

void describe(SparseWeightedSumProblem& problem, FloatInputs& list) {
  const AttentionShape& shape = problem.shape;
  list.add("weights", problem.weights, shape.batch,
           shape.heads * shape.query_length * problem.sparse.k, 1);
  list.add("value", problem.value, shape, shape.key_length, shape.value_dim, problem.key_lengths);
}

/// Precision, kernel, then the cause of a non-finite result.
template <typename Problem>
Status execute(Problem problem, const CallSettings& settings, Context& context,
               Status (*kernel)(const Problem&, Context&)) {
  FloatInputs inputs;
  describe(problem, inputs);
  if (settings.precision == Precision::bfloat16) CA_RETURN_IF_ERROR(inputs.round(context));
  CA_RETURN_IF_ERROR(kernel(problem, context));
  if (settings.non_finite == NonFinite::error && context.saw_non_finite()) {
    return inputs.find_non_finite();
  }
  return Status::success();
}

}  // namespace

Status run(const AttentionProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::attention);
}

Status run(const ClusteredAttentionProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::clustered_attention);
}

Status run(const CentroidAttentionProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::centroid_attention);
}

Status run(const CastAttentionProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::cast_attention);
}

Status run(const CentroidPoolProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::centroid_pool);
}

Status run(const CentroidEncodeProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::centroid_encode);
}

Status run(const HashProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::hash);
}

Status run(const HammingKMeansProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::hamming_kmeans);
}

Status run(const KMeansProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::kmeans);
}

Status run(const AggregateProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::aggregate);
}

Status run(const BroadcastProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::broadcast);
}

Status run(const TopKProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::top_k);
}

Status run(const SparseDotProblem& problem, const CallSettings& settings, Context& context) {
  return execute(problem, settings, context, kernels::sparse_dot);
}

Status run(const SparseWeightedSumProblem& problem, const CallSettings& settings,
           Context& context) {
  return execute(problem, settings, context, kernels::sparse_weighted_sum);
}

}  // namespace cluster_attention
