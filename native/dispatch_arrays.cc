#include "native/dispatch_arrays.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "native/core/shape.h"
#include "native/dispatch_reads.h"

namespace cluster_attention {

using namespace reading;

namespace {

/// The nearest bfloat16, ties to even; NaN stays NaN, also in the upper half of its bits.
float round_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  bits = (value != value ? bits | 0x400000u : rounded) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Column of the first NaN or Inf of a row, -1 when there is none.
int64_t first_non_finite(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    if (!std::isfinite(row[d])) return d;
  }
  return -1;
}

}  // namespace

int64_t element_size(ElementType type) {
  return type == ElementType::float32 || type == ElementType::int32 ? 4 : 8;
}

// The problem's pointers differ in type; as bytes they are all alike.
void* ProblemArray::data() const {
  void* data;
  std::memcpy(&data, slot, sizeof data);
  return data;
}

void ProblemArray::redirect(const void* data) const { std::memcpy(slot, &data, sizeof data); }

void ProblemArray::spoil(void* data) const {
  if (type != ElementType::float32) return;
  std::fill_n(static_cast<float*>(data), elements, std::numeric_limits<float>::quiet_NaN());
}

bool ProblemArrays::has_results() const {
  return std::any_of(begin(), end(), [](const ProblemArray& array) {
    return array.is_result && array.elements > 0;
  });
}

Status ProblemArrays::round(Context& context) const {
  for (const ProblemArray& input : *this) {
    if (!input.is_float_argument()) continue;
    const int64_t size = input.elements;
    float* rounded = context.workspace().allocate<float>(size);
    if (rounded == nullptr) return Status::out_of_memory();
    const float* source = static_cast<const float*>(input.data());
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
    input.redirect(rounded);
  }
  return Status::success();
}

Status ProblemArrays::find_in(const ProblemArray& input, Context& context, int64_t& first) const {
  bool* read = context.workspace().allocate<bool>(input.reads != nullptr ? input.length : 0);
  if (read == nullptr) return Status::out_of_memory();
  for (int64_t sequence = 0; sequence < input.batch * input.heads; ++sequence) {
    const int64_t b = sequence / input.heads;
    const int64_t h = sequence % input.heads;
    const int64_t length = real_length(input.lengths, b, input.length);
    bool is_marked = input.reads == nullptr;
    for (int64_t r = 0; r < length; ++r) {
      if (context.cancelled()) return Status::cancelled();
      const float* row = input.rows.row(b, h, r);
      const int64_t column = first_non_finite(row, input.dim);
      const int64_t index = row + column - input.rows.data;
      if (column < 0 || (first >= 0 && index > first)) continue;
      if (!is_marked) {
        std::fill_n(read, length, false);
        input.reads(problem_, b, h, length, read);
        is_marked = true;
      }
      if (input.reads == nullptr || read[r]) first = index;
    }
  }
  return Status::success();
}

Status ProblemArrays::find_non_finite(Context& context) const {
  for (const ProblemArray& input : *this) {
    if (!input.is_float_argument()) continue;
    int64_t first = -1;
    CA_RETURN_IF_ERROR(find_in(input, context, first));
    if (first >= 0) return {StatusCode::non_finite, input.name, first};
  }
  return {StatusCode::overflow, nullptr, -1};
}

void ProblemArrays::spoil_results() const {
  for (const ProblemArray& array : *this) {
    if (array.is_result) array.spoil(array.data());
  }
}

ProblemArray& ProblemArrays::append(const char* name, void* slot, ElementType type, bool is_result,
                                    int64_t elements) {
  ProblemArray& array = arrays_[count_++];
  array.name = name;
  array.slot = slot;
  array.type = type;
  array.is_result = is_result;
  array.elements = elements;
  return array;
}

void ProblemArrays::add(const char* name, InputRows& rows, const AttentionShape& shape,
                        int64_t length, int64_t dim, const int32_t* lengths, MarkRows reads) {
  if (rows.data == nullptr) return;
  const int64_t elements = elements_of(shape, length, dim);
  ProblemArray& array = append(name, &rows.data, ElementType::float32, false, elements);
  array.rows = rows;
  array.batch = shape.batch;
  array.heads = shape.heads;
  array.length = length;
  array.dim = dim;
  array.lengths = lengths;
  array.reads = reads;
}

void ProblemArrays::add(const char* name, const float*& data, int64_t batch, int64_t length,
                        int64_t dim, const int32_t* lengths, MarkRows reads) {
  if (data == nullptr) return;
  const int64_t elements = batch * length * dim;
  ProblemArray& array = append(name, &data, ElementType::float32, false, elements);
  array.rows = dense_rows(data, length, dim);
  array.batch = batch;
  array.length = length;
  array.dim = dim;
  array.lengths = lengths;
  array.reads = reads;
}

void ProblemArrays::add_attention(AttentionInputs& inputs, MarkRows reads_query,
                                  MarkRows reads_key) {
  const AttentionShape& shape = inputs.shape;
  add("query", inputs.query, shape, shape.query_length, shape.head_dim, inputs.query_lengths,
      reads_query);
  add("key", inputs.key, shape, shape.key_length, shape.head_dim, inputs.key_lengths, reads_key);
  add("value", inputs.value, shape, shape.key_length, shape.value_dim, inputs.key_lengths,
      reads_key);
}

void ProblemArrays::add_lengths(AttentionInputs& inputs) {
  add("queryLengths", inputs.query_lengths, inputs.shape.batch);
  add("keyLengths", inputs.key_lengths, inputs.shape.batch);
}

void ProblemArrays::add_lists(SparseIndices& sparse, const AttentionShape& shape) {
  const int64_t lists = sparse.labels != nullptr ? sparse.clusters : shape.query_length;
  add("indices", sparse.indices, elements_of(shape, lists, sparse.k));
  add("labels", sparse.labels, elements_of(shape, shape.query_length));
}

// ---- what each problem holds; gradients are in dispatch_gradient_arrays.cc ----------------------

void ProblemArrays::describe(AttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  add_attention(problem.inputs, reads<AttentionProblem, sees_keys>, reads<AttentionProblem, seen>);
  add_lengths(problem.inputs);
  add("output", problem.output, elements_of(shape, shape.query_length, shape.value_dim));
  add("logsumexp", problem.logsumexp, elements_of(shape, shape.query_length));
}

void ProblemArrays::describe(ClusteredAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  add_attention(problem.inputs, reads<ClusteredAttentionProblem, in_cluster>, nullptr);
  add("planes", problem.planes, 1, problem.bits, shape.head_dim + 1);
  add_lengths(problem.inputs);
  add("labels", problem.given_labels, elements_of(shape, shape.query_length));
  add("output", problem.output, elements_of(shape, shape.query_length, shape.value_dim));
  add("resultLabels", problem.labels, elements_of(shape, shape.query_length));
  add("counts", problem.counts, elements_of(shape, problem.clusters));
  add("resultIndices", problem.indices, elements_of(shape, problem.clusters, problem.top_k));
  add("clusterValues", problem.cluster_values,
      elements_of(shape, problem.clusters, shape.value_dim));
  add("clusterLogsumexp", problem.cluster_logsumexp, elements_of(shape, problem.clusters));
}

void ProblemArrays::describe(CentroidAttentionProblem& problem) {
  const AttentionShape& shape = problem.inputs.shape;
  add_attention(problem.inputs, nullptr, reads<CentroidAttentionProblem, active_inputs>);
  add("weights", problem.weights, shape.batch, shape.key_length, 1, problem.inputs.key_lengths);
  add_lengths(problem.inputs);
  add("neighbors", problem.neighbors, shape.batch * shape.query_length * problem.neighbor_count);
  add("output", problem.output, elements_of(shape, shape.query_length, shape.value_dim));
  add("labels", problem.labels, elements_of(shape, shape.key_length));
  add("masses", problem.masses, elements_of(shape, shape.query_length));
  add("objective", problem.objective, shape.batch);
  add("logsumexp", problem.logsumexp, elements_of(shape, shape.query_length));
}

void ProblemArrays::describe(CastAttentionProblem& problem) {
  AttentionInputs& inputs = problem.inputs;
  const AttentionShape& shape = inputs.shape;
  inputs.query_lengths = inputs.key_lengths;  // self-attention
  add_attention(inputs, nullptr, nullptr);
  add("surrogates", problem.surrogates, 1, shape.heads * problem.clusters, shape.head_dim);
  add("gate", problem.gate, shape.batch, shape.key_length, 1, inputs.key_lengths);
  add_lengths(inputs);
  const int64_t slots = shape.batch * problem.clusters * problem.cluster_size;
  add("indices", problem.given_indices, slots);
  add("output", problem.output, elements_of(shape, shape.query_length, shape.value_dim));
  add("resultIndices", problem.indices, slots);
  add("coverage", problem.coverage, shape.batch);
}

void ProblemArrays::describe(CentroidPoolProblem& problem) {
  const int64_t batch = problem.batch;
  add("inputs", problem.inputs, batch, problem.length, problem.dim, problem.lengths);
  add("initial", problem.initial, batch, problem.centroids, problem.dim, nullptr,
      reads<CentroidPoolProblem, within_clamp>);
  add("lengths", problem.lengths, batch);
  add("output", problem.output, batch * problem.centroids * problem.dim);
  add("labels", problem.labels, batch * problem.length);
  add("masses", problem.masses, batch * problem.centroids);
}

void ProblemArrays::describe(CentroidEncodeProblem& problem) {
  const int64_t batch = problem.batch;
  const int64_t inner = problem.heads * problem.head_dim;
  add("inputs", problem.inputs, batch, problem.length, problem.dim, nullptr,
      reads<CentroidEncodeProblem, active_rows>);
  add("initial", problem.initial, batch, problem.centroids, problem.dim);
  add("queryWeight", problem.query_weight, 1, inner, problem.dim);
  add("keyWeight", problem.key_weight, 1, inner, problem.dim);
  add("valueWeight", problem.value_weight, 1, inner, problem.dim);
  add("outputWeight", problem.output_weight, 1, problem.dim, inner);
  add("weights", problem.weights, batch, problem.length, 1);
  add("neighbors", problem.neighbors, batch * problem.centroids * problem.neighbor_count);
  add("output", problem.output, batch * problem.centroids * problem.dim);
}

void ProblemArrays::describe(HashProblem& problem) {
  add("inputs", problem.inputs, 1, problem.rows, problem.dim);
  add("planes", problem.planes, 1, problem.bits, problem.dim + 1);
  add("hashes", problem.hashes, problem.rows);
}

void ProblemArrays::describe(HammingKMeansProblem& problem) {
  add("hashes", problem.hashes, problem.batch * problem.length);
  add("initial", problem.initial, problem.batch * problem.clusters);
  add("lengths", problem.lengths, problem.batch);
  add("labels", problem.labels, problem.batch * problem.length);
  add("counts", problem.counts, problem.batch * problem.clusters);
  add("centroids", problem.centroids, problem.batch * problem.clusters);
  add("iterations", problem.iterations, problem.batch);
}

void ProblemArrays::describe(KMeansProblem& problem) {
  const int64_t sequences = problem.batch * problem.heads;
  AttentionShape shape;
  shape.batch = problem.batch;
  shape.heads = problem.heads;
  add("inputs", problem.inputs, shape, problem.length, problem.dim, problem.lengths);
  add("initial", problem.initial, sequences, problem.clusters, problem.dim, nullptr,
      reads<KMeansProblem, within_clamp>);
  add("lengths", problem.lengths, problem.batch);
  add("centroids", problem.centroids, sequences * problem.clusters * problem.dim);
  add("labels", problem.labels, sequences * problem.length);
  add("counts", problem.counts, sequences * problem.clusters);
  add("inertia", problem.inertia, sequences);
  add("iterations", problem.iterations, sequences);
}

void ProblemArrays::describe(AggregateProblem& problem) {
  const int64_t sequences = problem.batch * problem.heads;
  AttentionShape shape;
  shape.batch = problem.batch;
  shape.heads = problem.heads;
  add("inputs", problem.inputs, shape, problem.length, problem.dim, nullptr,
      reads<AggregateProblem, member>);
  add("labels", problem.labels, sequences * problem.length);
  add("output", problem.output, sequences * problem.clusters * problem.dim);
}

void ProblemArrays::describe(BroadcastProblem& problem) {
  add("inputs", problem.inputs, problem.batch, problem.clusters, problem.dim, nullptr,
      reads<BroadcastProblem, taken>);
  add("labels", problem.labels, problem.batch * problem.length);
  add("output", problem.output, problem.batch * problem.length * problem.dim);
}

void ProblemArrays::describe(TopKProblem& problem) {
  // A row of scores counts as a sequence of columns, since its length says how many are read.
  add("scores", problem.scores, problem.rows, problem.columns, 1, problem.lengths);
  add("lengths", problem.lengths, problem.rows);
  add("values", problem.values, problem.rows * problem.k);
  add("indices", problem.indices, problem.rows * problem.k);
}

void ProblemArrays::describe(SparseDotProblem& problem) {
  const AttentionShape& shape = problem.shape;
  add("query", problem.query, shape, shape.query_length, shape.head_dim, problem.query_lengths);
  add("key", problem.key, shape, shape.key_length, shape.head_dim, problem.key_lengths,
      reads<SparseDotProblem, listed<SparseDotProblem>>);
  add_lists(problem.sparse, shape);
  add("queryLengths", problem.query_lengths, shape.batch);
  add("keyLengths", problem.key_lengths, shape.batch);
  add("output", problem.output, elements_of(shape, shape.query_length, problem.sparse.k));
}

void ProblemArrays::describe(SparseWeightedSumProblem& problem) {
  const AttentionShape& shape = problem.shape;
  add("weights", problem.weights, shape.batch * shape.heads, shape.query_length * problem.sparse.k,
      1, nullptr, reads<SparseWeightedSumProblem, filled<SparseWeightedSumProblem>>);
  add("value", problem.value, shape, shape.key_length, shape.value_dim, problem.key_lengths,
      reads<SparseWeightedSumProblem, listed<SparseWeightedSumProblem>>);
  add_lists(problem.sparse, shape);
  add("queryLengths", problem.query_lengths, shape.batch);
  add("keyLengths", problem.key_lengths, shape.batch);
  add("output", problem.output, elements_of(shape, shape.query_length, shape.value_dim));
}

void ProblemArrays::describe(MatmulProblem& problem) {
  // How many columns a row has matters only to the flat index: transposes read the same elements.
  add("a", problem.a, problem.batch, problem.rows, problem.depth);
  add("b", problem.b, problem.batch, problem.depth, problem.columns);
  const int64_t elements = problem.batch * problem.rows * problem.columns;
  append("output", &problem.output, ElementType::float32, true, elements).is_added_to =
      problem.accumulate;
}

}  // namespace cluster_attention
