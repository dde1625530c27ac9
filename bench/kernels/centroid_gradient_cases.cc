#include "bench/kernels/centroid_gradient_cases.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "native/core/gradient_problem.h"
#include "native/dispatch.h"

namespace cluster_attention::bench {

namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;
constexpr int64_t kCentroids = 64;

std::vector<float> gaussian(int64_t count, uint32_t seed, double deviation = 1.0) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(normal(generator));
  return values;
}

std::vector<float> zeros(int64_t count) { return std::vector<float>(static_cast<size_t>(count)); }

double inner_product(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

/// |<a,da> - expected|, relative to the sizes of both.
double product_error(const std::vector<float>& a, const std::vector<float>& gradient,
                     double expected) {
  return std::fabs(inner_product(a, gradient) - expected) /
         std::sqrt(inner_product(a, a) * inner_product(gradient, gradient));
}

// ---- CAST ---------------------------------------------------------------------------------------

struct CastData {
  explicit CastData(int64_t size)
      : length(size),
        clusters(std::max<int64_t>(1, size / 256)),
        cluster_size(std::min<int64_t>(256, size)),
        query(gaussian(kHeads * size * kDim, 1)),
        key(gaussian(kHeads * size * kDim, 2)),
        value(gaussian(kHeads * size * kDim, 3)),
        surrogates(gaussian(kHeads * clusters * kDim, 4)),
        gate(gaussian(size, 5)),
        output_gradient(gaussian(kHeads * size * kDim, 6)),
        output(zeros(kHeads * size * kDim)),
        query_gradient(output),
        key_gradient(output),
        value_gradient(output),
        surrogates_gradient(surrogates),
        gate_gradient(gate),
        indices(static_cast<size_t>(clusters * cluster_size)) {
    CastAttentionProblem& forward = problem.forward;
    forward.inputs.shape = {1, kHeads, size, size, kDim, kDim};
    forward.inputs.query = view<const float>(query);
    forward.inputs.key = view<const float>(key);
    forward.inputs.value = view<const float>(value);
    forward.inputs.scale = 0.125f;
    forward.clusters = clusters;
    forward.cluster_size = cluster_size;
    forward.surrogates = surrogates.data();
    forward.gate = gate.data();
    forward.output = view<float>(output);
    forward.indices = indices.data();
    problem.output_gradient = view<const float>(output_gradient);
    problem.gradients = {view<float>(query_gradient), view<float>(key_gradient),
                         view<float>(value_gradient)};
    problem.surrogates = surrogates_gradient.data();
    problem.gate = gate_gradient.data();
  }

  template <typename T>
  RowView<T> view(std::vector<float>& array) {
    return dense_rows<T>(array.data(), Layout::bhld, kHeads, length, kDim);
  }

  /// The output is linear in the values; and nothing changes when queries, keys and surrogates of a
  /// head are rotated together, so that the sum of xᵀ dx over them is symmetric.
  double error() const {
    const double linear =
        product_error(value, value_gradient, inner_product(output, output_gradient));
    std::vector<double> sum(kDim * kDim);
    double size = 0.0;
    const auto add = [&](const std::vector<float>& x, const std::vector<float>& gradient,
                         int64_t rows) {
      std::vector<double> product(kDim * kDim);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < kDim * kDim; ++i) {
          product[static_cast<size_t>(i)] +=
              double{x[static_cast<size_t>(r * kDim + i / kDim)]} *
              double{gradient[static_cast<size_t>(r * kDim + i % kDim)]};
        }
      }
      for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] += product[i];
        size += product[i] * product[i];
      }
    };
    add(query, query_gradient, length);
    add(key, key_gradient, length);
    add(surrogates, surrogates_gradient, clusters);
    double squared = 0.0;
    for (size_t a = 0; a < kDim; ++a) {
      for (size_t b = 0; b < kDim; ++b) {
        const double difference = sum[a * kDim + b] - sum[b * kDim + a];
        squared += difference * difference;
      }
    }
    return std::max(linear, std::sqrt(squared / size));
  }

  int64_t length, clusters, cluster_size;
  std::vector<float> query, key, value, surrogates, gate, output_gradient, output;
  std::vector<float> query_gradient, key_gradient, value_gradient, surrogates_gradient;
  std::vector<float> gate_gradient;
  std::vector<int32_t> indices;
  CastAttentionGradientProblem problem;
};

// ---- pooling ------------------------------------------------------------------------------------

struct PoolData {
  explicit PoolData(int64_t size)
      : length(size),
        inputs(gaussian(size * kDim, 1)),
        output_gradient(gaussian(kCentroids * kDim, 2)),
        output(zeros(kCentroids * kDim)),
        inputs_gradient(zeros(size * kDim)) {
    CentroidPoolProblem& forward = problem.forward;
    forward.batch = 1;
    forward.length = size;
    forward.dim = kDim;
    forward.centroids = kCentroids;
    forward.inputs = inputs.data();
    forward.output = output.data();
    problem.output_gradient = output_gradient.data();
    problem.inputs = inputs_gradient.data();
  }

  /// Under the cosine, all centroids grow with the inputs.
  double error() const {
    return product_error(inputs, inputs_gradient, inner_product(output, output_gradient));
  }

  int64_t length;
  std::vector<float> inputs, output_gradient, output, inputs_gradient;
  CentroidPoolGradientProblem problem;
};

// ---- the learned layer --------------------------------------------------------------------------

struct EncodeData {
  static constexpr int64_t kWidth = kHeads * kDim;

  explicit EncodeData(int64_t size)
      : length(size),
        inputs(gaussian(size * kWidth, 1)),
        output_gradient(gaussian(kCentroids * kWidth, 2)),
        output(zeros(kCentroids * kWidth)),
        inputs_gradient(zeros(size * kWidth)) {
    for (uint32_t i = 0; i < 4; ++i) {
      weights[i] = gaussian(kWidth * kWidth, 3 + i, 1.0 / std::sqrt(double(kWidth)));
      weight_gradients[i] = weights[i];
    }
    CentroidEncodeProblem& forward = problem.forward;
    forward.batch = 1;
    forward.length = size;
    forward.dim = kWidth;
    forward.heads = kHeads;
    forward.head_dim = kDim;
    forward.centroids = kCentroids;
    forward.scale = 0.125f;
    forward.aggregate = Collect::mean;
    forward.inputs = inputs.data();
    forward.query_weight = weights[0].data();
    forward.key_weight = weights[1].data();
    forward.value_weight = weights[2].data();
    forward.output_weight = weights[3].data();
    forward.output = output.data();
    problem.output_gradient = output_gradient.data();
    problem.inputs = inputs_gradient.data();
    problem.query_weight = weight_gradients[0].data();
    problem.key_weight = weight_gradients[1].data();
    problem.value_weight = weight_gradients[2].data();
    problem.output_weight = weight_gradients[3].data();
  }

  /// What a step adds is linear in W_v and in W_o; and it depends on W_q and W_k through the
  /// product of a head's parts alone.
  double error() const {
    const double change = inner_product(weights[3], weight_gradients[3]);
    const double query = inner_product(weights[0], weight_gradients[0]);
    return std::max(product_error(weights[2], weight_gradients[2], change),
                    product_error(weights[1], weight_gradients[1], query));
  }

  int64_t length;
  std::vector<float> inputs, output_gradient, output, inputs_gradient;
  std::vector<float> weights[4], weight_gradients[4];
  CentroidEncodeGradientProblem problem;
};

/// `backward`: or else the forward.
template <typename Data>
Case gradient_case(int64_t length, bool backward, double operations) {
  auto data = std::make_shared<Data>(length);
  Case result;
  result.operations = operations;
  Context context(1);
  cluster_attention::run(data->problem.forward, {}, context);
  result.run = [data = data.get(), backward](Context& call) {
    return backward ? cluster_attention::run(data->problem, {}, call)
                    : cluster_attention::run(data->problem.forward, {}, call);
  };
  result.error = [data = data.get()] {
    Context call(1);
    cluster_attention::run(data->problem, {}, call);
    return data->error();
  };
  result.storage = data;
  return result;
}

}  // namespace

const std::vector<std::string>& centroid_gradient_names() {
  static const std::vector<std::string> names = {"castAttentionGradient", "centroidPool",
                                                 "centroidPoolGradient", "centroidEncode",
                                                 "centroidEncodeGradient"};
  return names;
}

Case make_centroid_gradient_case(const std::string& kernel, int64_t length) {
  const double tokens = static_cast<double>(length);
  if (kernel == "castAttentionGradient") {
    const double clusters = std::max(1.0, std::floor(tokens / 256.0));
    const double partners = 5.0 * std::min(256.0, tokens) + 6.0 * clusters;
    return gradient_case<CastData>(length, true, 2.0 * kHeads * kDim * tokens * partners);
  }
  // The states are found again: those products count too.
  const double step = 2.0 * kDim * kCentroids * tokens;
  if (kernel == "centroidPool") return gradient_case<PoolData>(length, false, 8.0 * 2.0 * step);
  if (kernel == "centroidPoolGradient") {
    return gradient_case<PoolData>(length, true, 8.0 * 7.0 * step);
  }
  const double layer = 2.0 * kHeads * kCentroids * EncodeData::kWidth * tokens;
  if (kernel == "centroidEncode") return gradient_case<EncodeData>(length, false, 2.0 * layer);
  if (kernel == "centroidEncodeGradient") {
    return gradient_case<EncodeData>(length, true, 7.0 * layer);
  }
  return {};
}

}  // namespace cluster_attention::bench
