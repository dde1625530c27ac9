#include "test/native/gradients.h"

#include <cmath>

namespace cluster_attention::test {

namespace {

constexpr double kAbsolute = 1e-5;
constexpr double kRelative = 1e-3;

/// Moves one element both ways and compares; false on the first mistake.
bool check_element(const char* name, float& element, int64_t index, double gradient,
                   const Loss& loss) {
  double numeric = 0.0;
  if (!std::isnan(element)) {
    const float saved = element;
    const float above = saved + 1e-4f;
    const float below = saved - 1e-4f;
    element = above;
    const double loss_above = loss();
    element = below;
    const double loss_below = loss();
    element = saved;
    // The steps are what float32 makes of them.
    numeric = (loss_above - loss_below) / (static_cast<double>(above) - static_cast<double>(below));
  }
  if (std::abs(numeric - gradient) <= kAbsolute + kRelative * std::abs(numeric)) return true;
  std::ostringstream message;
  message << "d" << name << "[" << index << "] is " << gradient << ", finite differences say "
          << numeric;
  fail(__FILE__, __LINE__, message.str());
  return false;
}

}  // namespace

void check_finite_differences(const char* name, float* data, const std::vector<double>& gradient,
                              const Loss& loss) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    if (!check_element(name, data[i], static_cast<int64_t>(i), gradient[i], loss)) return;
  }
}

void check_finite_differences(const char* name, const InputRows& rows, int64_t batch, int64_t heads,
                              int64_t length, int64_t dim, const std::vector<double>& gradient,
                              const Loss& loss) {
  CHECK_EQUAL(static_cast<int64_t>(gradient.size()), batch * heads * length * dim);
  for (int64_t i = 0; i < batch * heads * length * dim; ++i) {
    const int64_t row = i / dim;
    const float* data =
        rows.row(row / length / heads, row / length % heads, row % length) + i % dim;
    if (!check_element(name, const_cast<float&>(*data), i, gradient[i], loss)) return;
  }
}

double inner_product(const std::vector<double>& a, const std::vector<float>& b) {
  CHECK_EQUAL(a.size(), b.size());
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != 0.0) sum += a[i] * static_cast<double>(b[i]);  // padding is 0 and has no gradient
  }
  return sum;
}

std::vector<float> read_view(const InputRows& view, int64_t batch, int64_t heads, int64_t rows,
                             int64_t columns) {
  return read_view(same_view(view, const_cast<float*>(view.data)), batch, heads, rows, columns);
}

AttentionGradientArrays::AttentionGradientArrays(AttentionArrays& forward, const Case& which,
                                                 Fill fill, Arrays* outputs) {
  const AttentionInputs& inputs = forward.inputs;
  const AttentionShape& shape = inputs.shape;
  const int64_t sequences = shape.batch * shape.heads;
  Arrays& arrays = outputs != nullptr ? *outputs : forward.arrays;
  output_gradient_data = arrays.floats(sequences * shape.query_length * shape.value_dim, 31, fill);
  poison_padding(output_gradient_data, which, which.query_lengths, shape.query_length,
                 shape.value_dim);
  output_gradient = same_view<const float>(forward.output, output_gradient_data);
  gradients.query = same_view(
      inputs.query, arrays.output<float>(sequences * shape.query_length * shape.head_dim));
  gradients.key =
      same_view(inputs.key, arrays.output<float>(sequences * shape.key_length * shape.head_dim));
  gradients.value =
      same_view(inputs.value, arrays.output<float>(sequences * shape.key_length * shape.value_dim));
}

DenseGradients read_gradients(const AttentionGradients& gradients, const AttentionShape& shape) {
  const auto rows = [&](const OutputRows& view, int64_t length, int64_t dim) {
    return read_view(view, shape.batch, shape.heads, length, dim);
  };
  return {rows(gradients.query, shape.query_length, shape.head_dim),
          rows(gradients.key, shape.key_length, shape.head_dim),
          rows(gradients.value, shape.key_length, shape.value_dim)};
}

AttentionGradients alone(AttentionGradients gradients, int64_t batch, int64_t head) {
  gradients.query = alone(gradients.query, batch, head);
  gradients.key = alone(gradients.key, batch, head);
  gradients.value = alone(gradients.value, batch, head);
  return gradients;
}

}  // namespace cluster_attention::test
