#include "bench/kernels/gradient_cases.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "native/core/gradient_problem.h"
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
constexpr double kScale = 0.125;

using Row = std::vector<double>;

double dot(const float* a, const float* b) {
  double sum = 0.0;
  for (int64_t d = 0; d < kDim; ++d) sum += static_cast<double>(a[d]) * static_cast<double>(b[d]);
  return sum;
}

double dot(const Row& a, const float* b) {
  double sum = 0.0;
  for (int64_t d = 0; d < kDim; ++d) sum += a[static_cast<size_t>(d)] * static_cast<double>(b[d]);
  return sum;
}

void add(Row& sum, double factor, const float* row) {
  for (int64_t d = 0; d < kDim; ++d)
    sum[static_cast<size_t>(d)] += factor * static_cast<double>(row[d]);
}

void add(Row& sum, double factor, const Row& row) {
  for (size_t d = 0; d < row.size(); ++d) sum[d] += factor * row[d];
}

/// Query, key, value, gradient of the output, and all gradients: (1, 8, N, 64) each.
struct GradientData {
  explicit GradientData(int64_t size) : length(size) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::vector<float>* array : {&query, &key, &value, &output_gradient}) {
      array->resize(static_cast<size_t>(kHeads * length * kDim));
      for (float& x : *array) x = normal(generator);
    }
    for (std::vector<float>* array : {&output, &query_gradient, &key_gradient, &value_gradient}) {
      array->resize(static_cast<size_t>(kHeads * length * kDim));
    }
  }

  template <typename T>
  RowView<T> view(std::vector<float>& array) {
    return dense_rows<T>(array.data(), Layout::bhld, kHeads, length, kDim);
  }
  AttentionInputs inputs() {
    AttentionInputs inputs;
    inputs.shape = {1, kHeads, length, length, kDim, kDim};
    inputs.query = view<const float>(query);
    inputs.key = view<const float>(key);
    inputs.value = view<const float>(value);
    inputs.scale = static_cast<float>(kScale);
    return inputs;
  }
  AttentionGradients gradients() {
    return {view<float>(query_gradient), view<float>(key_gradient), view<float>(value_gradient)};
  }
  /// Row `row` of head `head`.
  const float* at(const std::vector<float>& array, int64_t head, int64_t row) const {
    return array.data() + (head * length + row) * kDim;
  }

  int64_t length;
  std::vector<float> query, key, value, output, output_gradient;
  std::vector<float> query_gradient, key_gradient, value_gradient;
};

/// Relative L2 distance of sampled rows, the worst of the three gradients.
class GradientError {
 public:
  enum Which { query, key, value };
  void add(Which which, const Row& expected, const float* actual) {
    for (size_t d = 0; d < expected.size(); ++d) {
      const double difference = expected[d] - static_cast<double>(actual[d]);
      difference_[which] += difference * difference;
      norm_[which] += expected[d] * expected[d];
    }
  }
  double value_of_worst() const {
    double worst = 0.0;
    for (int i = 0; i < 3; ++i) {
      worst = std::max(worst, std::sqrt(difference_[i] / std::max(norm_[i], 1e-300)));
    }
    return worst;
  }

 private:
  double difference_[3] = {};
  double norm_[3] = {};
};

// ---- exact --------------------------------------------------------------------------------------

struct ExactData : GradientData {
  explicit ExactData(int64_t size)
      : GradientData(size), logsumexp(static_cast<size_t>(kHeads * size)) {
    problem.forward.inputs = inputs();
    problem.forward.output = view<float>(output);
    problem.forward.logsumexp = logsumexp.data();
    problem.output_gradient = view<const float>(output_gradient);
    problem.gradients = gradients();
  }

  double weight(int64_t head, int64_t l, int64_t s) const {
    return std::exp(kScale * dot(at(query, head, l), at(key, head, s)) -
                    static_cast<double>(logsumexp[static_cast<size_t>(head * length + l)]));
  }
  double change(int64_t head, int64_t l, int64_t s) const {
    const float* gradient = at(output_gradient, head, l);
    return kScale * weight(head, l, s) *
           (dot(gradient, at(value, head, s)) - dot(gradient, at(output, head, l)));
  }

  double error() const {
    GradientError error;
    for (int64_t sample = 0; sample < kSampledRows; ++sample) {
      const int64_t head = sample % kHeads;
      const int64_t row = sample * (length - 1) / (kSampledRows - 1);
      Row by_query(kDim), by_key(kDim), by_value(kDim);
      for (int64_t other = 0; other < length; ++other) {
        add(by_query, change(head, row, other), at(key, head, other));
        add(by_key, change(head, other, row), at(query, head, other));
        add(by_value, weight(head, other, row), at(output_gradient, head, other));
      }
      error.add(GradientError::query, by_query, at(query_gradient, head, row));
      error.add(GradientError::key, by_key, at(key_gradient, head, row));
      error.add(GradientError::value, by_value, at(value_gradient, head, row));
    }
    return error.value_of_worst();
  }

  std::vector<float> logsumexp;
  AttentionGradientProblem problem;
};

// ---- clustered and improved clustered -----------------------------------------------------------

struct ClusteredGradientData : GradientData {
  ClusteredGradientData(int64_t size, int64_t top_k)
      : GradientData(size),
        planes(static_cast<size_t>(kBits * (kDim + 1))),
        values(static_cast<size_t>(kHeads * kClusters * kDim)),
        logsumexp(static_cast<size_t>(kHeads * kClusters)),
        labels(static_cast<size_t>(kHeads * size)),
        indices(static_cast<size_t>(kHeads * kClusters * top_k)) {
    lsh_planes(kBits, kDim, 0, true, planes.data());
    ClusteredAttentionProblem& forward = problem.forward;
    forward.inputs = inputs();
    forward.clusters = kClusters;
    forward.top_k = top_k;
    forward.bits = kBits;
    forward.planes = planes.data();
    forward.output = view<float>(output);
    forward.labels = labels.data();
    forward.indices = indices.data();
    forward.cluster_values = values.data();
    forward.cluster_logsumexp = logsumexp.data();
    problem.output_gradient = view<const float>(output_gradient);
    problem.gradients = gradients();
  }

  double error() const;

  std::vector<float> planes, values, logsumexp;
  std::vector<int32_t> labels, indices;
  ClusteredAttentionGradientProblem problem;
};

/// The backward of one head in double (native/kernels/clustered_attention_gradient.h), row by row.
class HeadGradient {
 public:
  HeadGradient(const ClusteredGradientData& data, int64_t head)
      : data_(data), head_(head), k_(data.problem.forward.top_k), clusters_(kClusters) {
    for (int64_t i = 0; i < data.length; ++i) cluster_of(i).members.push_back(i);
    for (int64_t j = 0; j < kClusters; ++j) summarise(j);
  }

  Row by_query(int64_t i) const {
    const Cluster& cluster = cluster_of(i);
    const int64_t j = &cluster - clusters_.data();
    Row sum(kDim);
    for (int64_t s = 0; s < data_.length; ++s) {
      add(sum, change(j, s) / static_cast<double>(cluster.members.size()),
          data_.at(data_.key, head_, s));
    }
    const std::vector<double> y = own(cluster, i).change;
    for (size_t t = 0; t < y.size(); ++t) {
      add(sum, y[t], data_.at(data_.key, head_, cluster.top[t]));
    }
    return sum;
  }

  void by_key(int64_t s, Row& key, Row& value) const {
    for (int64_t j = 0; j < kClusters; ++j) {
      const Cluster& cluster = clusters_[static_cast<size_t>(j)];
      if (cluster.members.empty()) continue;
      add(key, change(j, s), cluster.mean);
      const auto place = std::find(cluster.top.begin(), cluster.top.end(), s);
      if (place == cluster.top.end()) {
        add(value, share(cluster, j, s), cluster.gradient);
        continue;
      }
      const auto t = static_cast<size_t>(place - cluster.top.begin());
      for (int64_t i : cluster.members) {
        const Own one = own(cluster, i);
        add(key, one.change[t], data_.at(data_.query, head_, i));
        add(value, cluster.mass * one.weight[t], data_.at(data_.output_gradient, head_, i));
      }
    }
  }

 private:
  struct Cluster {
    std::vector<int64_t> members;
    std::vector<int64_t> top;
    Row mean = Row(kDim);
    Row gradient = Row(kDim);
    double mass = 0.0;
    double mass_gradient = 0.0;
    double offset = 0.0;
  };
  struct Own {
    std::vector<double> weight;  // p
    std::vector<double> change;  // tau y
    double centre = 0.0;         // x̄
  };

  Cluster& cluster_of(int64_t i) {
    return clusters_[static_cast<size_t>(
        data_.labels[static_cast<size_t>(head_ * data_.length + i)])];
  }
  const Cluster& cluster_of(int64_t i) const {
    return const_cast<HeadGradient*>(this)->cluster_of(i);
  }

  double share(const Cluster& cluster, int64_t j, int64_t s) const {
    return std::exp(
        kScale * dot(cluster.mean, data_.at(data_.key, head_, s)) -
        static_cast<double>(data_.logsumexp[static_cast<size_t>(head_ * kClusters + j)]));
  }
  double change(int64_t j, int64_t s) const {
    const Cluster& cluster = clusters_[static_cast<size_t>(j)];
    const bool selected = std::find(cluster.top.begin(), cluster.top.end(), s) != cluster.top.end();
    const double slope =
        selected ? cluster.mass_gradient : dot(cluster.gradient, data_.at(data_.value, head_, s));
    return kScale * share(cluster, j, s) * (slope - cluster.offset);
  }

  Own own(const Cluster& cluster, int64_t i) const {
    Own own;
    double total = 0.0;
    for (int64_t key : cluster.top) {
      own.weight.push_back(
          std::exp(kScale * dot(data_.at(data_.query, head_, i), data_.at(data_.key, head_, key))));
      total += own.weight.back();
    }
    for (size_t t = 0; t < own.weight.size(); ++t) {
      own.weight[t] /= total;
      own.change.push_back(dot(data_.at(data_.output_gradient, head_, i),
                               data_.at(data_.value, head_, cluster.top[t])));
      own.centre += own.weight[t] * own.change[t];
    }
    for (size_t t = 0; t < own.weight.size(); ++t) {
      own.change[t] = kScale * cluster.mass * own.weight[t] * (own.change[t] - own.centre);
    }
    return own;
  }

  void summarise(int64_t j) {
    Cluster& cluster = clusters_[static_cast<size_t>(j)];
    if (cluster.members.empty()) return;
    for (int64_t i : cluster.members) {
      add(cluster.mean, 1.0 / static_cast<double>(cluster.members.size()),
          data_.at(data_.query, head_, i));
      add(cluster.gradient, 1.0, data_.at(data_.output_gradient, head_, i));
    }
    cluster.offset = dot(cluster.gradient, data_.values.data() + (head_ * kClusters + j) * kDim);
    for (int64_t t = 0; t < k_; ++t) {
      const int64_t key = data_.indices[static_cast<size_t>((head_ * kClusters + j) * k_ + t)];
      cluster.top.push_back(key);
      const double weight = share(cluster, j, key);
      cluster.mass += weight;
      cluster.offset -= weight * dot(cluster.gradient, data_.at(data_.value, head_, key));
    }
    for (int64_t i : cluster.members) cluster.mass_gradient += own(cluster, i).centre;
    cluster.offset += cluster.mass * cluster.mass_gradient;
  }

  const ClusteredGradientData& data_;
  int64_t head_;
  int64_t k_;
  std::vector<Cluster> clusters_;
};

double ClusteredGradientData::error() const {
  GradientError error;
  const int64_t head = kHeads - 1;
  const HeadGradient expected(*this, head);
  for (int64_t sample = 0; sample < kSampledRows; ++sample) {
    const int64_t row = sample * (length - 1) / (kSampledRows - 1);
    Row by_key(kDim), by_value(kDim);
    expected.by_key(row, by_key, by_value);
    error.add(GradientError::query, expected.by_query(row), at(query_gradient, head, row));
    error.add(GradientError::key, by_key, at(key_gradient, head, row));
    error.add(GradientError::value, by_value, at(value_gradient, head, row));
  }
  return error.value_of_worst();
}

/// `forward_operations` are those of the forward where it is timed too.
template <typename Data>
Case gradient_case(std::shared_ptr<Data> data, bool both, double forward_operations,
                   double operations, Precision precision = Precision::float32) {
  Case result;
  result.operations = operations + (both ? forward_operations : 0.0);
  if (precision == Precision::bfloat16) result.bound = kBfloat16Bound;
  CallSettings settings;
  settings.precision = precision;
  Context context(1);
  cluster_attention::run(data->problem.forward, settings, context);
  result.run = [data = data.get(), both, settings](Context& call) {
    if (both) {
      const Status status = cluster_attention::run(data->problem.forward, settings, call);
      if (!status.ok()) return status;
    }
    return cluster_attention::run(data->problem, settings, call);
  };
  result.error = [data = data.get()] { return data->error(); };
  result.storage = data;
  return result;
}

}  // namespace

const std::vector<std::string>& gradient_names() {
  static const std::vector<std::string> names = {
      "attentionGradient",         "attentionGradient/bfloat16", "clusteredAttentionGradient",
      "improvedClusteredGradient", "attentionGradient/both",     "improvedClusteredGradient/both"};
  return names;
}

Case make_gradient_case(const std::string& kernel, int64_t length) {
  const double pairs = 2.0 * kHeads * kDim * static_cast<double>(length);
  const double exact = pairs * static_cast<double>(length);
  const auto clustered = [&](int64_t k, bool both) {
    const double forward = pairs * (kBits + 2.0 * (kClusters + static_cast<double>(k)));
    return gradient_case(std::make_shared<ClusteredGradientData>(length, k), both, forward,
                         pairs * 5.0 * (kClusters + static_cast<double>(k)));
  };
  const auto attention = [&](bool both, Precision precision = Precision::float32) {
    return gradient_case(std::make_shared<ExactData>(length), both, 2.0 * exact, 5.0 * exact,
                         precision);
  };
  if (kernel == "attentionGradient") return attention(false);
  if (kernel == "attentionGradient/bfloat16") return attention(false, Precision::bfloat16);
  if (kernel == "attentionGradient/both") return attention(true);
  if (kernel == "clusteredAttentionGradient") return clustered(0, false);
  if (kernel == "improvedClusteredGradient") return clustered(kTopK, false);
  if (kernel == "improvedClusteredGradient/both") return clustered(kTopK, true);
  return {};
}

}  // namespace cluster_attention::bench
