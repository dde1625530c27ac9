#include "test/native/attention_arrays.h"

#include <cmath>

namespace cluster_attention::test {

AttentionArrays::AttentionArrays(const Case& which, Fill fill, uint64_t seed) {
  const AttentionShape shape{which.batch,      which.heads,    which.query_length,
                             which.key_length, which.head_dim, which.value_dim};
  const int64_t sequences = shape.batch * shape.heads;
  query = arrays.floats(sequences * shape.query_length * shape.head_dim, 3 * seed, fill);
  key = arrays.floats(sequences * shape.key_length * shape.head_dim, 3 * seed + 1, fill);
  value = arrays.floats(sequences * shape.key_length * shape.value_dim, 3 * seed + 2, fill);
  poison_padding(query, which, which.query_lengths, shape.query_length, shape.head_dim);
  poison_padding(key, which, which.key_lengths, shape.key_length, shape.head_dim);
  poison_padding(value, which, which.key_lengths, shape.key_length, shape.value_dim);

  inputs.shape = shape;
  inputs.query =
      dense_rows<const float>(query, which.layout, shape.heads, shape.query_length, shape.head_dim);
  inputs.key =
      dense_rows<const float>(key, which.layout, shape.heads, shape.key_length, shape.head_dim);
  inputs.value =
      dense_rows<const float>(value, which.layout, shape.heads, shape.key_length, shape.value_dim);
  inputs.query_lengths = arrays.optional(which.query_lengths);
  inputs.key_lengths = arrays.optional(which.key_lengths);
  inputs.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  output = dense_rows(arrays.output<float>(sequences * shape.query_length * shape.value_dim),
                      which.layout, shape.heads, shape.query_length, shape.value_dim);
}

Case AttentionArrays::self_attention(Case which) {
  which.query_length = which.key_length;
  which.query_lengths = which.key_lengths;
  return which;
}

void fill_column(float* data, int64_t rows, int64_t columns, int64_t column, float value) {
  for (int64_t row = 0; row < rows; ++row) data[row * columns + column] = value;
}

void poison_padding(float* data, const Case& which, const std::vector<int32_t>& lengths,
                    int64_t rows, int64_t columns) {
  if (lengths.empty()) return;
  const OutputRows view = dense_rows(data, which.layout, which.heads, rows, columns);
  for (int64_t b = 0; b < which.batch; ++b) {
    for (int64_t h = 0; h < which.heads; ++h) {
      for (int64_t row = lengths[b]; row < rows; ++row) {
        std::fill_n(view.row(b, h, row), columns, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
}

std::vector<float> read_view(const OutputRows& view, int64_t batch, int64_t heads, int64_t rows,
                             int64_t columns) {
  std::vector<float> values;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t row = 0; row < rows; ++row) {
        const float* first = view.row(b, h, row);
        values.insert(values.end(), first, first + columns);
      }
    }
  }
  return values;
}

std::vector<float> read_output(const OutputRows& output, const AttentionShape& shape) {
  return read_view(output, shape.batch, shape.heads, shape.query_length, shape.value_dim);
}

AttentionInputs alone(AttentionInputs inputs, int64_t batch, int64_t head) {
  inputs.query = alone(inputs.query, batch, head);
  inputs.key = alone(inputs.key, batch, head);
  inputs.value = alone(inputs.value, batch, head);
  inputs.query_lengths = part(inputs.query_lengths, batch, 1);
  inputs.key_lengths = part(inputs.key_lengths, batch, 1);
  inputs.shape.batch = 1;
  if (head >= 0) inputs.shape.heads = 1;
  return inputs;
}

}  // namespace cluster_attention::test
