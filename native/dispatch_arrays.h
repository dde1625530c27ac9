#pragma once

// Which arrays a problem holds: one description feeds the rounding to bfloat16, the search for the
// NaN or Inf behind a non-finite result, and the transfers to and from a device.

#include <cstdint>
#include <type_traits>

#include "native/core/context.h"
#include "native/core/gradient_problem.h"
#include "native/core/problem.h"
#include "native/core/status.h"

namespace cluster_attention {

/// Marks in read (rows), which holds false, the first rows of (batch, head) of an argument that
/// take part in the result of `problem`; of a gradient, `problem` is the forward problem.
using MarkRows = void (*)(const void* problem, int64_t batch, int64_t head, int64_t rows,
                          bool* read);

enum class ElementType : int32_t { float32, float64, int32, uint64 };

/// Bytes of one element.
int64_t element_size(ElementType type);

template <typename T>
constexpr ElementType element_type() {
  using Element = std::remove_const_t<T>;
  static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, double> ||
                std::is_same_v<Element, int32_t> || std::is_same_v<Element, uint64_t>);
  if (std::is_same_v<Element, float>) return ElementType::float32;
  if (std::is_same_v<Element, double>) return ElementType::float64;
  if (std::is_same_v<Element, int32_t>) return ElementType::int32;
  return ElementType::uint64;
}

/// Elements of a result (B,H,rows,columns).
inline int64_t elements_of(const AttentionShape& shape, int64_t rows, int64_t columns = 1) {
  return shape.batch * shape.heads * rows * columns;
}

/// One dense array of a problem. Float arguments also say how their rows are laid out and which of
/// them are read.
struct ProblemArray {
  const char* name = "";  // of the option, as errors name it
  void* slot = nullptr;   // address of the problem's pointer
  ElementType type = ElementType::float32;
  bool is_result = false;    // written by the kernel, not read
  bool is_state = false;     // a result of the forward call that its gradient reads
  bool is_added_to = false;  // a result that is read too
  int64_t elements = 0;

  // Float arguments.
  InputRows rows;
  int64_t batch = 0;
  int64_t heads = 1;
  int64_t length = 0;
  int64_t dim = 0;
  const int32_t* lengths = nullptr;  // (batch): rows past it are padding
  MarkRows reads = nullptr;          // null: every real row is read

  /// Whether the kernel reads what it holds before the call.
  bool is_read() const { return !is_result || is_added_to; }
  bool is_float_argument() const { return type == ElementType::float32 && !is_result && !is_state; }
  int64_t bytes() const { return elements * element_size(type); }
  /// What the problem points to.
  void* data() const;
  /// Points the problem elsewhere.
  void redirect(const void* data) const;
  /// Fills a result of floats that lies at `data`: what a failed call may have half written must
  /// not look like a result.
  void spoil(void* data) const;
};

/// The arrays of a problem that are there; float arguments in the order in which faults are
/// reported.
class ProblemArrays {
 public:
  static constexpr int kMaximum = 20;

  /// Lists the arrays of `problem`, which must outlive this object.
  template <typename Problem>
  explicit ProblemArrays(Problem& problem) : problem_(forward_of(problem, 0)) {
    describe(problem);
  }

  const ProblemArray* begin() const { return arrays_; }
  const ProblemArray* end() const { return arrays_ + count_; }

  /// Whether any result has an element: else there is nothing to do, however large the other sizes.
  bool has_results() const;
  /// Points every float argument of the problem at a copy that is rounded to bfloat16.
  Status round(Context& context) const;
  /// The first NaN or Inf in a row that is read; StatusCode::overflow when there is none. It may be
  /// cancelled, and wants a byte for each row of a sequence.
  Status find_non_finite(Context& context) const;
  /// After a failure in the middle of the call.
  void spoil_results() const;

 private:
  /// The forward problem of a gradient problem, else the problem itself.
  template <typename Problem>
  static auto forward_of(const Problem& problem, int) -> decltype(&problem.forward) {
    return &problem.forward;
  }
  template <typename Problem>
  static const Problem* forward_of(const Problem& problem, long) {
    return &problem;
  }

  /// Index of the first NaN or Inf in a row of `input` that is read; unchanged when there is none.
  Status find_in(const ProblemArray& input, Context& context, int64_t& first) const;

  ProblemArray& append(const char* name, void* slot, ElementType type, bool is_result,
                       int64_t elements);
  // Float arguments.
  void add(const char* name, InputRows& rows, const AttentionShape& shape, int64_t length,
           int64_t dim, const int32_t* lengths, MarkRows reads = nullptr);
  void add(const char* name, const float*& data, int64_t batch, int64_t length, int64_t dim,
           const int32_t* lengths = nullptr, MarkRows reads = nullptr);
  void add_attention(AttentionInputs& inputs, MarkRows reads_query, MarkRows reads_key);
  // Other arguments; results when T is not const.
  template <typename T>
  void add(const char* name, T*& data, int64_t elements) {
    if (data == nullptr) return;
    append(name, &data, element_type<T>(), !std::is_const_v<T>, elements);
  }
  void add(const char* name, OutputRows& rows, int64_t elements) { add(name, rows.data, elements); }
  void add_gradients(AttentionGradients& gradients, const AttentionShape& shape);
  // Results of the forward call.
  template <typename T>
  void add_state(const char* name, T*& data, int64_t elements) {
    if (data == nullptr) return;
    append(name, &data, element_type<T>(), false, elements).is_state = true;
  }
  void add_lists(SparseIndices& sparse, const AttentionShape& shape);
  void add_lengths(AttentionInputs& inputs);

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
  void describe(MatmulProblem& problem);
  void describe(AttentionGradientProblem& problem);
  void describe(ClusteredAttentionGradientProblem& problem);
  void describe(AggregateGradientProblem& problem);
  void describe(BroadcastGradientProblem& problem);
  void describe(SparseDotGradientProblem& problem);
  void describe(SparseWeightedSumGradientProblem& problem);
  void describe(CentroidAttentionGradientProblem& problem);
  void describe(CastAttentionGradientProblem& problem);
  void describe(CentroidEncodeGradientProblem& problem);
  void describe(CentroidPoolGradientProblem& problem);

  const void* problem_;
  ProblemArray arrays_[kMaximum];
  int count_ = 0;
};

}  // namespace cluster_attention
