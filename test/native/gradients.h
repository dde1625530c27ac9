#pragma once

// Central finite differences of a reference in double precision, and outputs for gradients.

#include <functional>

#include "native/core/gradient_problem.h"
#include "test/native/attention_arrays.h"

namespace cluster_attention::test {

/// A scalar that depends on the inputs: sum of output times output gradient.
using Loss = std::function<double()>;

/// Compares d loss / d input, element by element, with `gradient`. A row that holds NaN is padding:
/// its gradient must be 0.
void check_finite_differences(const char* name, float* data, const std::vector<double>& gradient,
                              const Loss& loss);
/// The same for the rows of a view; `gradient` is dense (batch,heads,length,dim).
void check_finite_differences(const char* name, const InputRows& rows, int64_t batch, int64_t heads,
                              int64_t length, int64_t dim, const std::vector<double>& gradient,
                              const Loss& loss);

/// sum of a[i] * b[i].
double inner_product(const std::vector<double>& a, const std::vector<float>& b);

/// The rows of a view of an input as a dense (B,H,rows,columns).
std::vector<float> read_view(const InputRows& view, int64_t batch, int64_t heads, int64_t rows,
                             int64_t columns);

/// A view of the same shape and strides over other memory.
template <typename T, typename U>
RowView<T> same_view(const RowView<U>& view, T* data) {
  return {data, view.batch_stride, view.head_stride, view.row_stride};
}

/// The output gradient (B,H,L,E) of an attention kind, with padding poisoned, and outputs for the
/// gradients of its inputs.
struct AttentionGradientArrays {
  float* output_gradient_data;
  InputRows output_gradient;
  AttentionGradients gradients;

  /// `outputs` holds the gradients; null: the forward's own arrays, where its results are rewritten
  /// whenever the gradients are.
  AttentionGradientArrays(AttentionArrays& forward, const Case& which, Fill fill = Fill::gaussian,
                          Arrays* outputs = nullptr);
};

/// The gradients as dense (B,H,rows,columns).
struct DenseGradients {
  std::vector<float> query;
  std::vector<float> key;
  std::vector<float> value;

  std::vector<std::vector<float>> list() const { return {query, key, value}; }
};
DenseGradients read_gradients(const AttentionGradients& gradients, const AttentionShape& shape);

/// The views of one sequence.
AttentionGradients alone(AttentionGradients gradients, int64_t batch, int64_t head);

}  // namespace cluster_attention::test
