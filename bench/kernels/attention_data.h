#pragma once

// What the cases of the forward kernels are made of.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "native/core/problem.h"
#include "native/core/tensor.h"

namespace cluster_attention::bench {

constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;
constexpr int64_t kSampledRows = 8;

inline std::vector<float> gaussian(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

/// Relative L2 distance accumulated over sampled rows.
class ErrorSum {
 public:
  void add(double expected, double got) {
    difference_ += (expected - got) * (expected - got);
    norm_ += expected * expected;
  }
  double value() const { return std::sqrt(difference_ / std::max(norm_, 1e-300)); }

 private:
  double difference_ = 0.0;
  double norm_ = 0.0;
};

/// Query, key, value and output of (1, 8, N, 64), and of fewer queries where M is given.
struct AttentionData {
  AttentionData(int64_t queries, int64_t keys)
      : query_length(queries),
        key_length(keys),
        query(gaussian(kHeads * queries * kDim, 1)),
        key(gaussian(kHeads * keys * kDim, 2)),
        value(gaussian(kHeads * keys * kDim, 3)),
        output(static_cast<size_t>(kHeads * queries * kDim)) {}

  AttentionInputs inputs() const {
    AttentionInputs inputs;
    inputs.shape = {1, kHeads, query_length, key_length, kDim, kDim};
    inputs.query = dense_rows(query.data(), Layout::bhld, kHeads, query_length, kDim);
    inputs.key = dense_rows(key.data(), Layout::bhld, kHeads, key_length, kDim);
    inputs.value = dense_rows(value.data(), Layout::bhld, kHeads, key_length, kDim);
    inputs.scale = 0.125f;
    return inputs;
  }

  const float* key_row(int64_t head, int64_t row) const {
    return key.data() + (head * key_length + row) * kDim;
  }
  const float* value_row(int64_t head, int64_t row) const {
    return value.data() + (head * key_length + row) * kDim;
  }

  /// Softmax weights of a query given in double over the listed keys (all when empty).
  std::vector<double> weights(int64_t head, const std::vector<double>& q,
                              const std::vector<int64_t>& keys) const {
    std::vector<double> weight(keys.size());
    double maximum = -1e300;
    for (size_t t = 0; t < keys.size(); ++t) {
      double dot = 0.0;
      for (int64_t d = 0; d < kDim; ++d)
        dot += q[static_cast<size_t>(d)] * key_row(head, keys[t])[d];
      weight[t] = dot * 0.125;
      maximum = std::max(maximum, weight[t]);
    }
    double sum = 0.0;
    for (double& w : weight) sum += w = std::exp(w - maximum);
    for (double& w : weight) w /= sum;
    return weight;
  }

  std::vector<double> query_row(int64_t head, int64_t row) const {
    const float* first = query.data() + (head * query_length + row) * kDim;
    return {first, first + kDim};
  }

  std::vector<int64_t> all_keys() const {
    std::vector<int64_t> keys(static_cast<size_t>(key_length));
    for (int64_t s = 0; s < key_length; ++s) keys[static_cast<size_t>(s)] = s;
    return keys;
  }

  int64_t query_length;
  int64_t key_length;
  std::vector<float> query, key, value, output;
};

}  // namespace cluster_attention::bench
