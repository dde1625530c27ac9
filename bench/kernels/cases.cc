#include "bench/kernels/cases.h"

#include <algorithm>
#include <cmath>

#include "bench/kernels/attention_data.h"
#include "bench/kernels/centroid_gradient_cases.h"
#include "bench/kernels/cluster_cases.h"
#include "bench/kernels/gradient_cases.h"
#include "native/core/problem.h"
#include "native/dispatch.h"

namespace cluster_attention::bench {

namespace {

constexpr int64_t kTopK = 32;

Case exact_case(int64_t length, Precision precision) {
  auto data = std::make_shared<AttentionData>(length, length);
  Case result;
  result.operations = 4.0 * kHeads * length * static_cast<double>(length) * kDim;
  result.run = [data = data.get(), precision](Context& context) {
    AttentionProblem problem;
    problem.inputs = data->inputs();
    problem.output =
        dense_rows(data->output.data(), Layout::bhld, kHeads, data->query_length, kDim);
    CallSettings settings;
    settings.precision = precision;
    return cluster_attention::run(problem, settings, context);
  };
  if (precision == Precision::bfloat16) result.bound = kBfloat16Bound;
  result.error = [data = data.get()] {
    ErrorSum error;
    const std::vector<int64_t> keys = data->all_keys();
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t head = sample % kHeads;
      const int64_t row = sample * (data->query_length - 1) / (kSampledRows - 1);
      const std::vector<double> weight = data->weights(head, data->query_row(head, row), keys);
      for (int64_t e = 0; e < kDim; ++e) {
        double expected = 0.0;
        for (size_t s = 0; s < keys.size(); ++s) {
          expected += weight[s] * data->value_row(head, keys[s])[e];
        }
        error.add(expected,
                  data->output[static_cast<size_t>((head * data->query_length + row) * kDim + e)]);
      }
    }
    return error.value();
  };
  result.storage = data;
  return result;
}

Case centroid_case(int64_t length, int64_t centroids) {
  auto data = std::make_shared<AttentionData>(centroids, length);
  Case result;
  result.operations = 4.0 * kHeads * length * static_cast<double>(centroids) * kDim;
  result.run = [data = data.get()](Context& context) {
    CentroidAttentionProblem problem;
    problem.inputs = data->inputs();
    problem.output =
        dense_rows(data->output.data(), Layout::bhld, kHeads, data->query_length, kDim);
    return cluster_attention::run(problem, {}, context);
  };
  result.error = [data = data.get()] {  // head 0, sampled centroids
    ErrorSum error;
    std::vector<std::vector<double>> expected(kSampledRows, std::vector<double>(kDim, 0.0));
    std::vector<double> weight(static_cast<size_t>(data->query_length));
    for (int64_t i = 0; i < data->key_length; ++i) {
      double maximum = -1e300;
      for (int64_t j = 0; j < data->query_length; ++j) {
        const float* q = data->query.data() + j * kDim;
        double dot = 0.0;
        for (int64_t d = 0; d < kDim; ++d)
          dot += static_cast<double>(q[d]) * data->key_row(0, i)[d];
        weight[static_cast<size_t>(j)] = dot * 0.125;
        maximum = std::max(maximum, dot * 0.125);
      }
      double sum = 0.0;
      for (double& w : weight) sum += w = std::exp(w - maximum);
      for (int64_t sample = 0; sample < kSampledRows; ++sample) {
        const int64_t j = sample * (data->query_length - 1) / (kSampledRows - 1);
        for (size_t e = 0; e < kDim; ++e) {
          expected[static_cast<size_t>(sample)][e] +=
              weight[static_cast<size_t>(j)] / sum * data->value_row(0, i)[e];
        }
      }
    }
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t j = sample * (data->query_length - 1) / (kSampledRows - 1);
      for (size_t e = 0; e < kDim; ++e) {
        error.add(expected[static_cast<size_t>(sample)][e],
                  data->output[static_cast<size_t>(j) * kDim + e]);
      }
    }
    return error.value();
  };
  result.storage = data;
  return result;
}

/// A linear layer: (N,width) times the transpose of (width,width).
struct MatmulData {
  MatmulData(int64_t rows, int64_t width)
      : a(gaussian(rows * width, 1)),
        b(gaussian(width * width, 2)),
        output(static_cast<size_t>(rows * width)) {
    problem.rows = rows;
    problem.columns = width;
    problem.depth = width;
    problem.transpose_b = true;
    problem.a = a.data();
    problem.b = b.data();
    problem.output = output.data();
  }

  std::vector<float> a;
  std::vector<float> b;
  std::vector<float> output;
  MatmulProblem problem;
};

Case matmul_case(int64_t length, int64_t width) {
  auto data = std::make_shared<MatmulData>(length, width);
  Case result;
  result.operations = 2.0 * static_cast<double>(length * width * width);
  result.run = [data = data.get()](Context& context) {
    return cluster_attention::run(data->problem, {}, context);
  };
  result.error = [data = data.get(), width] {
    ErrorSum error;
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t row = sample * (data->problem.rows - 1) / (kSampledRows - 1);
      for (int64_t column = 0; column < width; ++column) {
        double sum = 0.0;
        for (int64_t k = 0; k < width; ++k) {
          sum += double{data->a[static_cast<size_t>(row * width + k)]} *
                 double{data->b[static_cast<size_t>(column * width + k)]};
        }
        error.add(sum, data->output[static_cast<size_t>(row * width + column)]);
      }
    }
    return error.value();
  };
  result.storage = data;
  return result;
}

}  // namespace

const std::vector<std::string>& kernel_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {
        "attention",
        "attention/bfloat16",
        "clusteredAttention",
        "improvedClusteredAttention",
        "improvedClusteredAttention/euclidean",
        "centroidAttention/M=64",
        "centroidAttention/M=N/4",
        "castAttention",
        "castAttention/bfloat16",
        "matmul/512",
        "matmul/64",
    };
    all.insert(all.end(), gradient_names().begin(), gradient_names().end());
    all.insert(all.end(), centroid_gradient_names().begin(), centroid_gradient_names().end());
    return all;
  }();
  return names;
}

Case make_case(const std::string& kernel, int64_t length) {
  Case result;
  if (kernel == "attention") result = exact_case(length, Precision::float32);
  if (kernel == "attention/bfloat16") result = exact_case(length, Precision::bfloat16);
  if (kernel == "clusteredAttention") result = clustered_case(length, 0, Grouping::hamming);
  if (kernel == "improvedClusteredAttention") {
    result = clustered_case(length, kTopK, Grouping::hamming);
  }
  if (kernel == "improvedClusteredAttention/euclidean") {
    result = clustered_case(length, kTopK, Grouping::euclidean);
  }
  if (kernel == "centroidAttention/M=64") result = centroid_case(length, 64);
  if (kernel == "centroidAttention/M=N/4") result = centroid_case(length, length / 4);
  if (kernel == "castAttention") result = cast_case(length, Precision::float32);
  if (kernel == "castAttention/bfloat16") result = cast_case(length, Precision::bfloat16);
  if (kernel == "matmul/512") result = matmul_case(length, 512);
  if (kernel == "matmul/64") result = matmul_case(length, 64);
  if (!result.run) result = make_gradient_case(kernel, length);
  if (!result.run) result = make_centroid_gradient_case(kernel, length);
  if (result.run) result.kernel = kernel;
  return result;
}

}  // namespace cluster_attention::bench
