#include "bench/kernels/cluster_cases.h"

#include <algorithm>
#include <cmath>

#include "bench/kernels/attention_data.h"
#include "native/dispatch.h"
#include "native/kernels/hash.h"

namespace cluster_attention::bench {

namespace {

constexpr int64_t kClusters = 100;
constexpr int64_t kBits = 63;

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

}  // namespace

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

Case cast_case(int64_t length, Precision precision) {
  auto data = std::make_shared<CastData>(length);
  Case result;
  const double tokens = static_cast<double>(kHeads * length);
  result.operations = 2.0 * tokens * (data->size * 2.0 * kDim + data->clusters * 5.0 * kDim);
  if (precision == Precision::bfloat16) result.bound = kBfloat16Bound;
  result.run = [data = data.get(), precision](Context& context) {
    CastAttentionProblem problem;
    problem.inputs = data->inputs();
    problem.clusters = data->clusters;
    problem.cluster_size = data->size;
    problem.surrogates = data->surrogates.data();
    problem.gate = data->gate.data();
    problem.indices = data->indices.data();
    problem.output =
        dense_rows(data->output.data(), Layout::bhld, kHeads, data->query_length, kDim);
    CallSettings settings;
    settings.precision = precision;
    return cluster_attention::run(problem, settings, context);
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

}  // namespace cluster_attention::bench
