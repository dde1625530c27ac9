#pragma once

// The inputs that every attention kind shares, made from a case of the table. Padded rows hold NaN:
// a kernel that reads one shows it.

#include <limits>

#include "native/core/problem.h"
#include "test/native/arrays.h"
#include "test/native/cases.h"

namespace cluster_attention::test {

class AttentionArrays {
 public:
  explicit AttentionArrays(const Case& which, Fill fill = Fill::gaussian, uint64_t seed = 1);

  Arrays arrays;
  AttentionInputs inputs;
  OutputRows output;  // (B,H,L,E)
  // The arrays behind the views, for tests that change them.
  float* query;
  float* key;
  float* value;

  /// Attention from S tokens to themselves, as CAST needs it: L = S, padding by keyLengths.
  static Case self_attention(Case which);
};

/// Sets column `column` of every row of one tensor.
void fill_column(float* data, int64_t rows, int64_t columns, int64_t column, float value);

/// Sets the rows from lengths[b] on of every sequence to NaN.
void poison_padding(float* data, const Case& which, const std::vector<int32_t>& lengths,
                    int64_t rows, int64_t columns);

/// The rows of a view as a dense (B,H,rows,columns).
std::vector<float> read_view(const OutputRows& view, int64_t batch, int64_t heads, int64_t rows,
                             int64_t columns);
std::vector<float> read_output(const OutputRows& output, const AttentionShape& shape);

/// The same inputs for one sequence of a batch (head -1: all heads).
AttentionInputs alone(AttentionInputs inputs, int64_t batch, int64_t head = -1);
/// The view of one sequence.
template <typename T>
RowView<T> alone(RowView<T> view, int64_t batch, int64_t head = -1) {
  view.data = view.sequence(batch, head < 0 ? 0 : head);
  return view;
}
/// Part `index` of a dense array whose parts have `size` elements; nullptr stays.
template <typename T>
T* part(T* data, int64_t index, int64_t size) {
  return data == nullptr ? nullptr : data + index * size;
}

}  // namespace cluster_attention::test
