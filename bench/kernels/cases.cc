#include "bench/kernels/cases.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "bench/kernels/centroid_gradient_cases.h"
#include "bench/kernels/gradient_cases.h"
#include "native/core/problem.h"
#include "native/dispatch.h"
#include "native/kernels/hash.h"

namespace cluster_attention::bench {

namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;
constexpr int64_t kClusters = 100;
constexpr int64_t kBits = 63;
constexpr int64_t kTopK = 32;
constexpr int64_t kSampledRows = 8;

std::vector<float> gaussian(int64_t count, uint32_t seed) {
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

/// Of operands and weights rounded to bfloat16.
constexpr double kBfloat16Bound = 0x1p-6;

// ---- exact
// ----------------------------------------------------------------------------------------

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

// ---- clustered and improved clustered
// --------------------------------------------------------------

struct ClusteredData : AttentionData {
  ClusteredData(int64_t length, int64_t top_k, Grouping how)
      : AttentionData(length, length),
        k(top_k),
        grouping(how),
        planes(static_cast<size_t>(kBits * (kDim + 1))),
        labels(static_cast<size_t>(kHeads * length)),
        counts(static_cast<size_t>(kHeads * kClusters)),
        indices(static_cast<size_t>(kHeads * kClusters * top_k)) {
    lsh_planes(kBits, kDim, 0, true, planes.data());
  }

  Status run(Context& context) {
    ClusteredAttentionProblem problem;
    problem.inputs = inputs();
    problem.clusters = kClusters;
    problem.top_k = k;
    problem.grouping = grouping;
    problem.bits = kBits;
    problem.iterations = grouping == Grouping::euclidean ? 4 : 10;
    problem.planes = planes.data();
    problem.output = dense_rows(output.data(), Layout::bhld, kHeads, query_length, kDim);
    problem.labels = labels.data();
    problem.counts = counts.data();
    problem.indices = k > 0 ? indices.data() : nullptr;
    return cluster_attention::run(problem, {}, context);
  }

  /// spec §4 and §5 for sampled queries, given the kernel's labels and top keys.
  double error() const {
    ErrorSum error;
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t head = sample % kHeads;
      const int64_t row = sample * (query_length - 1) / (kSampledRows - 1);
      const std::vector<double> expected = expected_row(head, row);
      for (int64_t e = 0; e < kDim; ++e) {
        error.add(expected[static_cast<size_t>(e)],
                  output[static_cast<size_t>((head * query_length + row) * kDim + e)]);
      }
    }
    return error.value();
  }

  std::vector<double> expected_row(int64_t head, int64_t row) const {
    const int32_t* label = labels.data() + head * query_length;
    const int64_t cluster = label[row];
    std::vector<double> mean(kDim, 0.0);
    double members = 0.0;
    for (int64_t i = 0; i < query_length; ++i) {
      if (label[i] != cluster) continue;
      members += 1.0;
      const std::vector<double> q = query_row(head, i);
      for (size_t d = 0; d < kDim; ++d) mean[d] += q[d];
    }
    for (double& x : mean) x /= members;
    std::vector<double> weight = weights(head, mean, all_keys());
    if (k > 0) {
      const int32_t* top = indices.data() + (head * kClusters + cluster) * k;
      const std::vector<int64_t> keys(top, std::find(top, top + k, -1));
      double mass = 0.0;
      for (int64_t key : keys) mass += weight[static_cast<size_t>(key)];
      const std::vector<double> own = weights(head, query_row(head, row), keys);
      for (size_t t = 0; t < keys.size(); ++t) weight[static_cast<size_t>(keys[t])] = mass * own[t];
    }
    std::vector<double> expected(kDim, 0.0);
    for (int64_t s = 0; s < key_length; ++s) {
      for (size_t e = 0; e < kDim; ++e) {
        expected[e] += weight[static_cast<size_t>(s)] * value_row(head, s)[e];
      }
    }
    return expected;
  }

  int64_t k;
  Grouping grouping;
  std::vector<float> planes;
  std::vector<int32_t> labels, counts, indices;
};

Case clustered_case(int64_t length, int64_t top_k, Grouping grouping) {
  auto data = std::make_shared<ClusteredData>(length, top_k, grouping);
  Case result;
  const double queries = static_cast<double>(kHeads * length);
  const double group =
      grouping == Grouping::euclidean ? 5.0 * kClusters * kDim : 1.0 * kDim * kBits;
  result.operations = 2.0 * queries * (group + kClusters * 2.0 * kDim + top_k * 2.0 * kDim);
  result.run = [data = data.get()](Context& context) { return data->run(context); };
  result.error = [data = data.get()] { return data->error(); };
  result.storage = data;
  return result;
}

// ---- centroid attention
// ------------------------------------------------------------------------------

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

// ---- CAST
// ----------------------------------------------------------------------------------------------

struct CastData : AttentionData {
  static constexpr int64_t kSize = 256;  // kappa
  explicit CastData(int64_t length)
      : AttentionData(length, length),
        clusters(std::max<int64_t>(1, length / kSize)),
        size(std::min(kSize, length)),
        surrogates(gaussian(kHeads * clusters * kDim, 4)),
        gate(gaussian(length, 5)),
        indices(static_cast<size_t>(clusters * size)) {}

  int64_t clusters;
  int64_t size;
  std::vector<float> surrogates, gate;
  std::vector<int32_t> indices;
};

double softplus1(double x) { return std::log1p(std::exp(x)) + 1.0; }

/// Step 7 of spec §7 for one token and head, given the kernel's selection.
std::vector<double> cast_row(const CastData& data, int64_t head, int64_t token) {
  const auto dot = [](const float* a, const float* b) {
    double sum = 0.0;
    for (int64_t d = 0; d < kDim; ++d) sum += static_cast<double>(a[d]) * b[d];
    return sum;
  };
  const float* query = data.query.data() + (head * data.query_length + token) * kDim;
  std::vector<double> share(static_cast<size_t>(data.clusters));
  double total = 0.0;
  for (int64_t c = 0; c < data.clusters; ++c) {
    const float* surrogate = data.surrogates.data() + (head * data.clusters + c) * kDim;
    share[static_cast<size_t>(c)] =
        std::exp(dot(query, surrogate) * softplus1(data.gate[static_cast<size_t>(token)]) * 0.125);
    total += share[static_cast<size_t>(c)];
  }
  std::vector<double> output(kDim, 0.0);
  for (int64_t c = 0; c < data.clusters; ++c) {
    const float* surrogate = data.surrogates.data() + (head * data.clusters + c) * kDim;
    const int32_t* members = data.indices.data() + c * data.size;
    const bool member = std::find(members, members + data.size, token) != members + data.size;
    std::vector<double> mixed(kDim, 0.0);
    double sum = 0.0;
    for (int64_t slot = 0; slot < data.size; ++slot) {
      if (members[slot] < 0) continue;
      const float* key = data.key_row(head, members[slot]);
      const double factor = softplus1(-data.gate[static_cast<size_t>(members[slot])]);
      const double weight =
          std::exp((member ? dot(query, key) : dot(surrogate, key) * factor) * 0.125);
      sum += weight;
      for (size_t e = 0; e < kDim; ++e) {
        mixed[e] += weight * data.value_row(head, members[slot])[e];
      }
    }
    for (size_t e = 0; e < kDim; ++e) {
      output[e] += share[static_cast<size_t>(c)] / total * mixed[e] / sum;
    }
  }
  return output;
}

Case cast_case(int64_t length) {
  auto data = std::make_shared<CastData>(length);
  Case result;
  const double tokens = static_cast<double>(kHeads * length);
  result.operations = 2.0 * tokens * (data->size * 2.0 * kDim + data->clusters * 5.0 * kDim);
  result.run = [data = data.get()](Context& context) {
    CastAttentionProblem problem;
    problem.inputs = data->inputs();
    problem.clusters = data->clusters;
    problem.cluster_size = data->size;
    problem.surrogates = data->surrogates.data();
    problem.gate = data->gate.data();
    problem.indices = data->indices.data();
    problem.output =
        dense_rows(data->output.data(), Layout::bhld, kHeads, data->query_length, kDim);
    return cluster_attention::run(problem, {}, context);
  };
  result.error = [data = data.get()] {
    ErrorSum error;
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t token = sample * (data->query_length - 1) / (kSampledRows - 1);
      const std::vector<double> expected = cast_row(*data, sample % kHeads, token);
      for (size_t e = 0; e < kDim; ++e) {
        const int64_t row = sample % kHeads * data->query_length + token;
        error.add(expected[e], data->output[static_cast<size_t>(row) * kDim + e]);
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
  if (kernel == "castAttention") result = cast_case(length);
  if (kernel == "matmul/512") result = matmul_case(length, 512);
  if (kernel == "matmul/64") result = matmul_case(length, 64);
  if (!result.run) result = make_gradient_case(kernel, length);
  if (!result.run) result = make_centroid_gradient_case(kernel, length);
  if (result.run) result.kernel = kernel;
  return result;
}

}  // namespace cluster_attention::bench
